"""Every shipped configuration of a multimodal run resolves, holds its published values and builds its connector."""

from pathlib import Path

import pytest
import torch

from mllm.connectors import build
from mllm.schema import MLLMConfig
from mllm.shapes import TextShape, VisionShape
from vpeft.config import parse, to_yaml

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "configs" / "mllm").glob("*.yaml"))
CLIP_L_336, CLIP_L = VisionShape(1024, (24, 24)), VisionShape(1024, (16, 16), 1)
LLAMA_7B = TextShape(4096, 32, 32, 32, 128, 11008, 32000)
# Rate, that of the connector, decay; samples of a step on one device, tokens; parameters of the connector.
RECIPES = {
    "cogvlm": (1e-4, None, 0.05, 256, 2048, None),
    "blip2_stage2": (1e-4, None, 0.05, 1920, 64, None),
    "blip2_stage2_lavis": (1e-4, None, 0.05, 64, 64, None),
    "flamingo": (1e-4, None, 0.1, 32, 33, 1_178_834_960 + 4096),
    "llama_adapter": (1e-4, None, 0.05, 256, 512, None),
    "llava_finetune": (2e-5, None, 0.0, 128, 2048, 20_979_712),
    "llava_finetune_lora": (2e-4, 2e-5, 0.0, 128, 2048, 20_979_712),
    "llava_pretrain": (1e-3, None, 0.0, 256, 2048, 20_979_712),
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("overrides", [[], ["--data.root", "DIR"]], ids=["embedded", "published"])
def test_every_shipped_config_resolves_and_runs_again_as_it_was_saved(path, overrides, tmp_path):
    config = parse([str(path), *overrides])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert parse([str(saved)]) == config
    if not overrides:
        assert not config.data.files.train  # the embedded sets need no files


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_published_recipe_keeps_its_values(name):
    lr, connector_lr, decay, samples, length, count = RECIPES[name]
    config = parse([str(ROOT / "configs/mllm" / f"{name}.yaml"), "--data.root", "DIR"])
    assert isinstance(config, MLLMConfig)
    assert (config.optim.lr, config.optim.connector_lr, config.optim.weight_decay) == (lr, connector_lr, decay)
    assert config.data.batch_size * config.train.accumulate == samples
    assert config.data.max_length == length
    if count is not None:
        with torch.device("meta"):
            connector = build(config.connector, CLIP_L_336 if "336" in config.vision.backbone else CLIP_L, LLAMA_7B)
        assert sum(p.numel() for p in connector.parameters()) == count


def test_the_recipe_of_lora_is_the_published_one():
    config = parse([str(ROOT / "configs/mllm/llava_finetune_lora.yaml"), "--data.root", "DIR"])
    assert isinstance(config, MLLMConfig)
    expected = {"name": "lora", "r": 128, "alpha": 256, "dropout": 0.05, "targets": None, "use_dora": False}
    assert config.language_method == expected


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem != "tiny"], ids=lambda path: path.stem)
def test_every_shipped_recipe_names_its_paper_command_and_result(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "arXiv:" in header
    assert f"python tools/train.py configs/mllm/{path.name}\n" in header
    assert "docs/benchmarks.md" in header
