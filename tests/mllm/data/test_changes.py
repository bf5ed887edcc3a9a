"""Training images are cropped and mirrored as torchvision does it, and the same wherever and whenever they are read."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vpeft  # noqa: F401  before torchvision, which may not import without it
from mllm.data.changes import CropFlip, draw_crop
from mllm.data.images import Look
from mllm.data_schema import DataConfig
from mllm.schema import MLLMConfig
from tests.mllm.data.files import write_talks
from tests.mllm.data.test_module import assert_same, data, epochs
from vpeft.data.images import as_tensor


class Torch:
    """torch's numbers, as torchvision asks for them."""

    def uniform(self, low, high):
        return torch.empty(1).uniform_(low, high).item()

    def integers(self, low, high):
        return torch.randint(low, high, size=(1,)).item()


def picture(width=23, height=17):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(23, 17), (17, 23), (9, 60), (60, 9), (1, 1)])
@pytest.mark.parametrize("scale", [(0.5, 1.0), (0.08, 0.2), (1.0, 1.0)])
def test_crops_are_drawn_as_torchvision_draws_them(size, scale):
    from torchvision.transforms import RandomResizedCrop

    image, random = picture(*size), Torch()
    for seed in range(20):
        torch.manual_seed(seed)
        top, left, height, width = RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3])  # type: ignore[arg-type]
        torch.manual_seed(seed)
        assert draw_crop(size, scale, random) == (left, top, width, height)


def test_a_crop_is_resized_as_torchvision_resizes_it(monkeypatch):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import hflip, resized_crop

    image, change = picture(), CropFlip(Look((8, 12)), 3, (0.5, 1.0))
    random = np.random.default_rng([3, 4, 0, 5, 0])  # the stream of crops, epoch, sample, image
    left, top, width, height = draw_crop(image.size, (0.5, 1.0), random)
    wanted: Any = resized_crop(image, top, left, height, width, [8, 12], InterpolationMode.BICUBIC)  # type: ignore[arg-type]
    wanted = hflip(wanted) if random.uniform(0, 1) < 0.5 else wanted
    assert torch.equal(change(image, (0, 5, 0)), as_tensor(wanted))


def test_half_are_mirrored():
    wide = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 3)))
    change = CropFlip(Look((4, 4)), 0, (0.5, 1.0))
    mirrored = [bool(made[0, 0, 0] > made[0, 0, -1]) for made in (change(wide, (0, i, 0)) for i in range(400))]
    assert 0.43 < sum(mirrored) / 400 < 0.57


def test_batches_are_cropped_anew_every_epoch_and_alike_for_any_number_of_workers(tmp_path):
    write_talks(tmp_path, 30)
    (tmp_path / "val.json").write_text((tmp_path / "talks.json").read_text())
    change: dict[str, Any] = {"augment": "crop_flip", "crop_scale": [0.2, 0.5], "batch_size": 30}
    module = data(tmp_path, **change)
    alone, helped = epochs(module), epochs(data(tmp_path, **change, workers=2))
    plain = epochs(data(tmp_path, batch_size=30))
    for ours, theirs in zip(alone, helped, strict=True):
        assert_same(ours, theirs)
    order = [torch.argsort(epoch[0]["index"][epoch[0]["image_row"]]) for epoch in alone]
    first, second = (epoch[0]["images"][at] for epoch, at in zip(alone, order, strict=True))
    assert sum(not torch.equal(one, other) for one, other in zip(first, second, strict=True)) > 15  # of 20
    assert not torch.equal(alone[0][0]["images"], plain[0][0]["images"])
    assert torch.equal(alone[0][0]["input_ids"], plain[0][0]["input_ids"])
    whole = next(iter(data(tmp_path).loader("val")))
    assert torch.equal(next(iter(module.loader("val")))["images"], whole["images"]), (
        "an evaluation sees all of an image"
    )


@pytest.mark.parametrize("scale", [[0.5], [0.0, 1.0], [0.9, 0.5], [0.5, 1.5]])
def test_shares_that_cannot_be_are_refused(scale):
    (found,) = DataConfig(crop_scale=scale).conflicts()
    assert found[0] == "data.crop_scale"
    assert "two shares from above 0 to 1, the smaller first, not" in found[1]


def test_changed_images_have_no_features_to_keep():
    config = MLLMConfig(cache_features=True, data=DataConfig(augment="crop_flip"))
    (found,) = config.conflicts()
    assert found[0] == "cache_features"
    assert "data.augment crop_flip shows another crop of it every time" in found[1]
