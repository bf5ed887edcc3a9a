"""A run with a frozen head trains the prompt alone, and its adapter says the same again."""

import pytest
import torch

from tests.heads.test_text import tiny  # noqa: F401  (a fixture)
from tests.runs import tiny_config, write_images
from vpeft import run
from vpeft.checkpoint import load_adapter, save_adapter
from vpeft.config import ConfigError, HeadConfig

BODIES = {
    "label_mapping": ("test_vit.r160_in1k", HeadConfig("label_mapping", sources=2)),
    "active_features": ("test_vit.r160_in1k", HeadConfig("active_features")),
    "text": ("open_clip:vpeft-tiny", HeadConfig("text", templates=["a {} noise", "some {}"])),
    "mapped text": ("open_clip:vpeft-tiny", HeadConfig("label_mapping", source="text", templates=["a {}", "{}s"])),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors", 10)


@pytest.mark.parametrize("kind", BODIES)
def test_a_run_trains_only_the_prompt_and_its_adapter_says_the_same(kind, images, tmp_path, tiny, monkeypatch):  # noqa: F811
    shown, said = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []

    def save_and_say(path, tuned, manifest):
        with torch.no_grad():
            said.append(tuned.eval()(shown))
        save_adapter(path, tuned, manifest)

    monkeypatch.setattr(run, "save_adapter", save_and_say)
    config = tiny_config(images, tmp_path, {"name": "ilm_vp", "inner": 24}, epochs=1)
    config.backbone, config.head = BODIES[kind]
    config.normalization = "none"
    row = run.train(config)
    assert (row["head"]["kind"], row["parameters"]["head"], row["parameters"]["method"]) == (config.head.kind, 0, 3072)
    adapter = tmp_path / "run" / "adapter.safetensors"
    model, manifest = load_adapter(adapter)
    assert manifest["head"] == row["head"]
    own = {"text": set(), "active_features": {"head.index"}}.get(kind, {"head.mapping"})
    assert {name for name in model.delta() if name.startswith("head.")} == own
    assert model.methods[0].program.any()
    assert model.methods[0].std.flatten().tolist() == [1.0] * 3, "the normalization of the run, not the backbone's"
    with torch.no_grad():
        assert torch.equal(model(shown), said[0])


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (HeadConfig("text", batch_norm=True), "head.batch_norm belongs to head.kind linear, and head.kind is text"),
        (HeadConfig("text", templates=["a photo"]), "head.templates must be sentences with {}"),
        (HeadConfig("label_mapping", sources=0), "head.sources must be at least 1"),
    ],
)
def test_a_head_that_cannot_be_is_refused_before_anything_is_loaded(head, sentence, images, tmp_path):
    config = tiny_config(images, tmp_path)
    config.head = head
    with pytest.raises(ConfigError) as refused:
        run.train(config)
    assert sentence in str(refused.value)
