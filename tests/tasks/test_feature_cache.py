"""What a frozen backbone makes of images is computed once, and a run ends as if it had not been kept."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs import tiny_config, write_images
from tests.zoo import image, tuned
from vpeft.backbones import Backbone
from vpeft.config import ConfigError, parse
from vpeft.run import check, train
from vpeft.tasks import feature_cache
from vpeft.tasks.feature_cache import FeatureCache

LINEAR = Path(__file__).parents[2] / "configs/vtab/linear.yaml"
METHODS = {
    "linear": {"name": "linear"},
    "vqt": {"name": "vqt", "queries": 2, "dropout": 0.2},
    "vqt weighted": {"name": "vqt", "queries": 2, "weighted": True},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_ends_the_same_and_the_backbone_sees_every_image_once(method, images, tmp_path, monkeypatch):
    seen: list[int] = []
    embed = Backbone._through
    monkeypatch.setattr(Backbone, "_through", lambda self, x: (seen.append(len(x)), embed(self, x))[1])
    rows, adapters, counts = [], [], []
    for cached in (False, True):
        config = tiny_config(images, tmp_path / str(cached), METHODS[method], epochs=4)
        config.data.drop_last = True
        rows.append(train(dataclasses.replace(config, cache_features=cached)))
        adapters.append(load_file(f"{rows[-1]['folder']}/adapter.safetensors"))
        counts.append(sum(seen))
        seen.clear()
    assert counts == [4 * (48 + 12) + 15, 1 + 48 + 12 + 15]  # one image of zeros, for its size
    torch.testing.assert_close(adapters[1], adapters[0], rtol=1e-6, atol=1e-6)
    assert rows[0]["val"] == pytest.approx(rows[1]["val"], rel=1e-6)
    assert rows[0]["test"]["loss"] == pytest.approx(rows[1]["test"]["loss"], rel=1e-6)


def test_an_image_that_the_first_epoch_left_out_is_computed_when_it_comes():
    cache = FeatureCache(tuned("timm_vit", "linear"), {"train": 3})
    asked = []
    pixels = torch.cat([image(), image(1)])[:3]

    def ask(at: list[int]) -> torch.Tensor:
        index = torch.tensor(at)
        return cache.logits("train", index, lambda new: asked.append(index[new].tolist()) or pixels[index[new]])

    with torch.no_grad():
        first = ask([0, 2])
        second = ask([2, 1])
        assert asked == [[0, 2], [1]]
        torch.testing.assert_close(cache.tuned(pixels), torch.stack([first[0], second[1], first[1]]))


def test_what_does_not_fit_into_memory_says_how_much_it_is(monkeypatch):
    monkeypatch.setattr(feature_cache, "memory", lambda: 200_000)
    # 2 blocks of 17 tokens with keys and values of 32, and the features: 4 (2 17 64 + 32) bytes.
    with pytest.raises(ValueError, match=r"needs 883,200 bytes of memory: VQT keeps 8,832 of each of 100 images"):
        FeatureCache(tuned("timm_vit", "vqt"), {"train": 80, "val": 20})
    FeatureCache(tuned("timm_vit", "linear"), {"train": 80, "val": 20})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--method.name", "lora"], "command line: cache_features cannot be used with method lora: what the backbone"),
        (["--method.name", "vpt"], "method vpt: what the backbone makes of an image changes .* It is for linear, vqt"),
        (["--method", '[{"name": "linear"}, {"name": "vqt"}]'], r"method linear\+vqt: it takes one method alone"),
        (["--data.augment", "flip"], "keeps one view of every image, and data.augment flip makes new ones"),
        (["--drop_path", "0.1"], "drop_path 0.1 leaves out other parts"),
        (["--train.devices", "2"], "in the memory of one process; give train.devices 1"),
        (["--train.nodes", "2"], "in the memory of one process"),
        (["--train.strategy", "fsdp"], "in the memory of one process"),
    ],
)
def test_what_would_change_the_features_is_refused_by_name(flags, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse([str(LINEAR), "--cache_features", "true", *flags])


def test_a_config_that_was_not_read_from_a_file_is_checked_too(images, tmp_path):
    with pytest.raises(ConfigError, match="cannot be used with method lora"):
        check(dataclasses.replace(tiny_config(images, tmp_path), cache_features=True))
