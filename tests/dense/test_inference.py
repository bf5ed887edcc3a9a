"""Whole, slide and augmented inference give what mmseg's EncoderDecoder and SegTTAModel give."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.golden import golden
from vpeft.dense.inference import augmented, slide, starts, whole
from vpeft.heads.fcn import FCNHead

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def network():
    """The small network of the golden file; it takes images of any size."""
    state = {key.removeprefix("model/"): value for key, value in golden("mmseg_inference").items() if "model/" in key}
    embed, head = nn.Conv2d(3, 6, 4, stride=4), FCNHead([6], 5, width=4, index=0)
    embed.load_state_dict({key: state[f"backbone.proj.{key}"] for key in ("weight", "bias")})
    own = {key.removeprefix("decode_head."): value for key, value in state.items() if "decode_head" in key}
    head.load_state_dict(own)
    head.eval().requires_grad_(False)
    return lambda images: head([embed.requires_grad_(False)(images).relu()])


def test_whole_and_slide_logits_equal_those_of_mmseg(network):
    g = golden("mmseg_inference")
    image = g["predict/image"]
    torch.testing.assert_close(whole(network, image)[0], g["predict/whole"], **CLOSE)
    # 40x60 in windows of 32 every 20: the last window of both sides is shifted back.
    torch.testing.assert_close(slide(network, image, (32, 32), (20, 20))[0], g["predict/slide"], **CLOSE)


def test_padding_is_put_on_and_taken_off_as_mmseg_does(network):
    g = golden("mmseg_inference")
    torch.testing.assert_close(whole(network, g["predict/image"], (64, 64))[0], g["predict/padded"], **CLOSE)


def test_scales_and_mirror_images_are_averaged_as_mmseg_does(network):
    g = golden("mmseg_inference")
    predict = partial(whole, network)
    shares = augmented(predict, g["predict/image"], (50, 77), (0.5, 1.0, 1.5), flip=True)
    torch.testing.assert_close(shares[0], g["predict/augmented"], **CLOSE)


@pytest.mark.parametrize(
    ("side", "crop", "stride", "expected"),
    [
        (512, 512, 341, [0]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),
        (854, 512, 341, [0, 341, 342]),
        (300, 512, 341, [0]),
    ],
)
def test_the_last_window_ends_with_the_image(side, crop, stride, expected):
    assert starts(side, crop, stride) == expected


def test_every_window_has_the_size_of_the_crop_and_counts_alike():
    seen: list[Tensor] = []

    def pixels(images):
        seen.append(images)
        return images[:, :1]

    image = torch.rand(2, 3, 20, 50)
    torch.testing.assert_close(slide(pixels, image, (32, 32), (10, 12)), image[:, :1])
    assert {tuple(window.shape[-2:]) for window in seen} == {(32, 32)}
    assert not seen[0][:, :, 20:].any(), "a low image is padded with the mean"


def test_a_mirror_image_is_mirrored_back_before_it_is_resized():
    image = torch.rand(1, 1, 4, 6)
    alone = augmented(lambda x: torch.cat([x, -x], 1), image, (4, 6))
    torch.testing.assert_close(augmented(lambda x: torch.cat([x, -x], 1), image, (4, 6), flip=True), alone)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (lambda: whole(lambda x: x, torch.zeros(1, 3, 40, 32), (32, 32)), "40x32 pixels and the network takes 32x32"),
        (lambda: slide(lambda x: x, torch.zeros(1, 3, 40, 32), (32, 32), (33, 32)), "from 1 to the window's side"),
        (lambda: slide(lambda x: x, torch.zeros(1, 3, 40, 32), (32, 32), (0, 32)), "from 1 to the window's side"),
        (lambda: augmented(lambda x: x, torch.zeros(1, 3, 4, 4), (4, 4), ()), "no scales to test at"),
    ],
)
def test_what_cannot_be_is_refused(run, sentence):
    with pytest.raises(ValueError, match=sentence):
        run()
