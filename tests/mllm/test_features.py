"""Features of a frozen tower are made once for every image."""

import io

import pytest
import torch
from PIL import Image

from mllm.data.images import Look, Pictures
from mllm.features import Features
from mllm.sample import Held
from mllm.vision import tower
from tests.zoo import MODELS
from vpeft.backbones import wrap
from vpeft.tasks.learning import channels, normalise


def _pictures(tuned, count):
    files = []
    for i in range(count):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * i, 10, 200)).save(file, "png")
        files.append(Held(str(i), file.getvalue()))
    return Pictures(files, Look(tuned.backbone.image_size, "squash"), False, 1 << 30)


def test_they_are_those_of_the_tower_and_made_once():
    tuned = tower(wrap(MODELS["timm_vit"]()))
    mean, std = channels((0.5, 0.5, 0.5)), channels((0.5, 0.5, 0.5))
    pictures = _pictures(tuned, 3)
    features = Features(tuned, mean, std)
    features.make(pictures)
    calls = []
    tuned.register_forward_hook(lambda *_: calls.append(1))
    features.make(pictures)
    assert not calls
    index = torch.tensor([2, 0, 2])
    with torch.no_grad():
        expected = tuned(normalise(pictures.take(index), mean, std))
    torch.testing.assert_close(features(index), expected)


def test_samples_without_images_are_refused():
    tuned = tower(wrap(MODELS["timm_vit"]()))
    features = Features(tuned, channels((0.5, 0.5, 0.5)), channels((0.5, 0.5, 0.5)))
    with pytest.raises(ValueError, match="these samples have none; leave it out"):
        features.make(_pictures(tuned, 0))
