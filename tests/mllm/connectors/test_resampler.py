"""The Perceiver resampler: OpenFlamingo's and TinyLLaVA's numbers, and latents that stay different."""

import pytest
import torch
import torch.nn.functional as F

from mllm.connectors.resampler import Perceiver, Resampler
from tests.golden import golden
from tests.mllm import parity
from tests.mllm.diversity import apart
from tests.mllm.shapes import shapes

PARTS = {"q": "0.to_q", "kv": "0.to_kv", "out": "0.to_out", "norm_media": "0.norm_media"}
PARTS |= {"norm_latents": "0.norm_latents", "mlp": "1"}


def theirs(name: str) -> str:
    if name == "media":
        return "media_time_embs"
    if name == "frames":
        return "frame_embs"
    if name.startswith("layers."):
        _, layer, part, *rest = name.split(".")
        return ".".join(["layers", layer, PARTS[part], *rest])
    return name


def test_several_media_and_frames_equal_openflamingo():
    g = dict(golden("mllm_resampler"))
    g["method/frame_embs"] = g["method/frame_embs"][:, None]
    g["grad/frame_embs"] = g["grad/frame_embs"][:, None]
    perceiver = Perceiver(16, latents=5, depth=2, heads=3, head_dim=8, media=4, frames=3)
    parity.load(perceiver, g, theirs)
    x, one = g["input/x"].requires_grad_(), g["input/x_one"].requires_grad_()
    media, frames = perceiver.media, perceiver.frames
    outputs = {"latents": perceiver(x), "latents_one": perceiver(one)}
    perceiver.media = perceiver.frames = None
    outputs["latents_no_time"] = perceiver(x)
    perceiver.media, perceiver.frames = media, frames
    parity.hold_outputs(g, outputs)
    parity.backward(g, outputs)
    found = parity.gradients(perceiver, theirs) | {"input.x": x.grad, "input.x_one": one.grad}
    parity.hold_gradients(g, found)


def test_at_the_width_of_the_language_model_it_equals_tinyllava():
    g = golden("mllm_tinyllava")
    resampler = Resampler(*shapes(12, 16, grid=(3, 3)), tokens=5, dim=16, depth=1)

    def named(name: str) -> str:
        inner = name.removeprefix("perceiver.")
        return f"resampler.{theirs(inner)}" if inner != name else name.replace("into", "resampler.linear")

    parity.load(resampler, g, named)
    outputs = {"resampler": resampler(g["input/x"])}
    parity.hold_outputs(g, outputs)
    parity.backward(g, outputs)
    parity.hold_gradients(g, parity.gradients(resampler, named), others=("mof_mlp", "input"))


def test_media_do_not_see_each_other():
    perceiver = Perceiver(16, latents=5, depth=2, heads=2, head_dim=8)
    x = torch.randn(2, 3, 2, 7, 16)
    apart = torch.stack([perceiver(x[:, i : i + 1])[:, 0] for i in range(3)], dim=1)
    torch.testing.assert_close(perceiver(x), apart)


def test_latents_start_different_and_stay_so_while_training():
    torch.manual_seed(0)
    resampler = Resampler(*shapes(12, 16), tokens=6, depth=2, heads=2, head_dim=8)
    x, y = torch.randn(8, 9, 12), torch.randn(8, 6, 16)
    optimizer = torch.optim.Adam(resampler.parameters(), lr=1e-2)
    assert apart(resampler(x)) > 0.05
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(resampler(x), y).backward()
        optimizer.step()
    assert apart(resampler(x)) > 0.05


def test_equal_latents_would_stay_equal():
    resampler = Resampler(*shapes(12, 16), tokens=6, depth=2, heads=2, head_dim=8)
    torch.nn.init.ones_(resampler.perceiver.latents)
    assert apart(resampler(torch.randn(8, 9, 12))) < 1e-5


@pytest.mark.parametrize("option", ["tokens", "dim", "depth", "heads", "head_dim", "ratio"])
def test_a_size_below_1_is_refused(option):
    with pytest.raises(ValueError, match=f"{option} is 0; it has to be at least 1"):
        Resampler(*shapes(12, 16), **{option: 0})
