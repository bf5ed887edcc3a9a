"""EVP equals its official code, trains its border only, and shrinks the image into it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.golden import golden
from tests.methods.pixels import body, close, method, normalised
from tests.runs import tiny_config, write_images
from tests.zoo import image, tuned
from vpeft.backbones import Preprocessing
from vpeft.config import to_yaml
from vpeft.methods.evp import shrink
from vpeft.run import train

CLIP = Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic")


def evp(g):
    built = method({"name": "evp", "size": 5}, body(32, CLIP))
    with torch.no_grad():
        built.perturbation.copy_(g["method/perturbation"])
    return built


def test_evp_equals_the_official_code():
    g = golden("pix_evp")
    prompt = evp(g)
    canvas = prompt.surround(normalised(g["input/image"], CLIP))
    probs = (canvas.flatten(1) @ g["input/classifier_weight"].T)[:, g["input/matched_index"]]
    ((canvas * g["cotangent/normalised_canvas"]).sum() + (probs * g["cotangent/probs"]).sum()).backward()
    torch.testing.assert_close(canvas, g["output/normalised_canvas"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probs, g["output/probs"], atol=1e-5, rtol=1e-5)
    close(prompt.perturbation, g["grad/perturbation"])


def test_a_step_of_evp_equals_that_of_the_official_code():
    g = golden("pix_evp")
    prompt = evp(g)
    optimiser = torch.optim.SGD(prompt.parameters(), lr=3.0)
    canvas = prompt.surround(normalised(g["input/image"], CLIP))
    probs = (canvas.flatten(1) @ g["input/classifier_weight"].T)[:, g["input/matched_index"]]
    loss = F.cross_entropy(probs, g["input/labels"])
    loss.backward()
    prompt.after_backward(0, 1)
    assert torch.equal((prompt.perturbation.grad != 0).float(), g["output/mask"])
    optimiser.step()
    torch.testing.assert_close(loss, g["output/loss"])
    torch.testing.assert_close(prompt.perturbation.data, g["output/perturbation_after_step"], atol=1e-5, rtol=1e-5)


def test_evp_trains_its_border_only_and_shrinks_the_image_into_it():
    model = tuned("timm_vit", "evp")
    prompt = model.methods[0]
    optimiser = torch.optim.SGD(prompt.parameters(), lr=1.0)
    model(image()).square().sum().backward()
    prompt.after_backward(0, 1)
    optimiser.step()
    assert prompt.perturbation[:, 5:-5, 5:-5].count_nonzero() == 0
    assert prompt.perturbation.count_nonzero() == 6 * 5 * (64 + 64 - 10)
    inside = prompt(image())[:, :, 5:-5, 5:-5]
    shrunk = F.interpolate(image(), (54, 54), mode="bicubic", antialias=True)
    torch.testing.assert_close(inside, shrunk, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(24, 40), (17, 33), (40, 56)])
def test_shrinking_equals_the_antialiased_resizing_of_torch(size):
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(images, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(shrink(images, size), theirs, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(shrink(images, size), theirs, atol=1e-5, rtol=1e-5)


def test_a_run_of_evp_under_fsdp_in_two_processes_is_that_of_one(tmp_path):
    images, spec = write_images(tmp_path / "images" / "colors"), {"name": "evp", "size": 4}
    train(tiny_config(images, tmp_path / "one", spec, epochs=1))
    config = tiny_config(images, tmp_path / "two", spec, epochs=1, strategy="fsdp", devices=2)
    config.data.batch_size //= 2
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "tools/train.py", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "run" / "adapter.safetensors") for name in ("one", "two"))
    prompt = one["methods.0.perturbation"]
    assert prompt.count_nonzero() == 6 * 4 * (32 + 32 - 8)
    torch.testing.assert_close(two["methods.0.perturbation"], prompt, rtol=1e-3, atol=1e-4)
