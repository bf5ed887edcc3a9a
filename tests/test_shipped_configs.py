"""Every shipped YAML is loaded, built, and names where it comes from."""

from pathlib import Path

import pytest
from timm.models.vision_transformer import VisionTransformer

from tests.zoo import TIMM
from vpeft import methods
from vpeft.backbones import wrap
from vpeft.config import parse, to_yaml
from vpeft.dense.segmentation_schema import SegmentationConfig

ROOT = Path(__file__).parents[1]
ORIGINAL = "vit_base_patch16_224.orig_in21k"
# Recipes whose authors took another model than that, or other than 100 epochs.
OTHER_RECIPES = {
    "dam_vp": (ORIGINAL, 50),
    "evp": ("open_clip:ViT-B-32/openai", 1000),
    "ilm_vp": ("vit_base_patch16_224.augreg_in21k_ft_in1k", 200),
    "ssf": ("vit_base_patch16_224.augreg_in21k", 100),
    "vp": ("open_clip:ViT-B-32/openai", 1000),
}
SHIPPED = sorted((ROOT / "configs" / "vtab").glob("*.yaml")) + sorted((ROOT / "configs" / "debug").glob("*.yaml"))


def test_the_command_that_makes_a_shipped_task_elsewhere_leads_to_its_recipe():
    vpt = str(ROOT / "configs/vtab/vpt.yaml")
    there = parse([vpt, "--data.root", "DIR", "--data.task", "digits"])
    there.data.root = None
    assert there == parse([vpt])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("overrides", [[], ["--data.root", "DIR"]], ids=["embedded", "published"])
def test_every_shipped_config_resolves_and_its_methods_build(path, overrides, tmp_path):
    config = parse([str(path), *overrides])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert parse([str(saved)]) == config
    side = 56 if config.image_size == 56 else 224  # prompts on pixels are as large as the image
    body = wrap(VisionTransformer(**TIMM | {"img_size": side, "patch_size": 14}))
    assert methods.build(config.method, body)


@pytest.mark.parametrize("path", [p for p in SHIPPED if p.parent.name == "vtab"], ids=lambda path: path.stem)
def test_every_shipped_recipe_names_its_paper_command_and_result(path):
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "arXiv:" in header
    assert f"python tools/train.py configs/vtab/{path.name}\n" in header
    assert "docs/benchmarks.md" in header
    published = parse([str(path), "--data.root", "DIR"])
    assert (published.backbone, published.train.epochs) == OTHER_RECIPES.get(path.stem, (ORIGINAL, 100))
    assert parse([str(path)]).backbone == "vit_small_patch14_saliency"


def test_a_published_recipe_keeps_its_values_with_the_flags_of_the_readme():
    flags = "--data.task cifar100 --data.root DIR --backbone vit_base_patch16_224.orig_in21k --method.prompts 50"
    config = parse([str(ROOT / "configs/vtab/vpt.yaml"), *flags.split()])
    assert config.method == {"name": "vpt", "prompts": 50, "deep": True, "dropout": 0.1, "project": None}
    assert (config.optim.name, config.optim.warmup_epochs, config.data.batch_size) == ("sgd", 10, 64)
    assert (config.normalization, config.image_size, config.head.init) == ("imagenet", None, "vpt")


ADE20K = sorted((ROOT / "configs" / "ade20k").glob("*.yaml"))
# Rate, that of the head, decay, stochastic depth; iterations of so many of the 20,210 images, and those of the warm-up.
DENSE_RECIPES = {
    "linear": (1e-3, None, 1e-4, 0.0, 40_000, 16, 1500),
    "lorand": (6e-5, None, 0.01, 0.3, 160_000, 16, 1500),
    "mona": (3e-4, None, 0.01, 0.2, 160_000, 16, 1500),
    "rein": (1e-4, None, 0.05, 0.0, 40_000, 4, 0),
    "vit_adapter": (2e-5, 2e-4, 0.01, 0.3, 160_000, 16, 1500),
    "vpt_setr": (1e-3, 1e-2, 0.0, 0.0, 160_000, 16, 0),
}


@pytest.mark.parametrize("path", ADE20K, ids=lambda path: path.stem)
def test_every_recipe_of_ade20k_resolves_to_its_published_values(path, tmp_path):
    for overrides in ([], ["--data.root", "DIR"]):
        config = parse([str(path), *overrides])
        saved = tmp_path / "config.yaml"
        saved.write_text(to_yaml(config))
        assert parse([str(saved)]) == config
    config = parse([str(path), "--data.root", "DIR"])
    assert isinstance(config, SegmentationConfig)
    *values, iterations, batch, warmup = DENSE_RECIPES[path.stem]
    optim = config.optim
    assert [optim.lr, optim.head_lr, optim.weight_decay, config.drop_path] == values
    steps = 20_210 // config.data.batch_size
    assert config.data.batch_size == batch
    assert 0 <= steps * config.train.epochs - iterations < steps
    assert round(steps * optim.warmup_epochs, -1) == warmup


@pytest.mark.parametrize("name", ["lorand", "mona"])
def test_biases_and_batch_norms_decay_as_in_the_official_configs_of_swin(name):
    """They spare what has `norm` in its name, and mmseg's heads call theirs `bn`; Mona's own are under `backbone`."""
    config = parse([str(ROOT / f"configs/ade20k/{name}.yaml"), "--data.root", "DIR"])
    assert config.optim.decay_vectors


def test_the_heads_of_the_published_vpt_on_setr_read_the_maps_that_mmsegs_do():
    config = parse([str(ROOT / "configs/ade20k/vpt_setr.yaml"), "--data.root", "DIR"])
    assert isinstance(config, SegmentationConfig)
    assert isinstance(config.auxiliary, list)
    assert config.neck["layers"] == [9, 14, 19, 23]
    read = [(head["index"], head["convs"], head["scale"]) for head in (config.head, *config.auxiliary)]
    assert read == [(3, 4, 2), (0, 2, 4), (1, 2, 4), (2, 2, 4)]


def test_the_published_rein_gives_its_head_as_many_queries_as_it_takes():
    path = str(ROOT / "configs/ade20k/rein.yaml")
    for config in (parse([path, "--data.root", "DIR"]), parse([path])):
        assert isinstance(config, SegmentationConfig)
        assert isinstance(config.method, dict)
        assert (config.method["tokens"], config.method["query_dim"]) == (config.head["queries"], config.head["width"])


def test_the_extractors_of_the_published_vit_adapter_drop_paths_as_its_blocks_do():
    path = str(ROOT / "configs/ade20k/vit_adapter.yaml")
    published, embedded = parse([path, "--data.root", "DIR"]), parse([path])
    assert isinstance(published, SegmentationConfig)
    assert isinstance(embedded, SegmentationConfig)
    assert published.neck["drop_path"] == published.drop_path == 0.3
    assert embedded.neck["drop_path"] == embedded.drop_path == 0


def test_the_embedded_vit_adapter_trains_the_linear_head_that_it_is_compared_with():
    adapter, linear = (parse([str(ROOT / f"configs/ade20k/{name}.yaml")]) for name in ("vit_adapter", "linear"))
    assert isinstance(adapter, SegmentationConfig)
    assert isinstance(linear, SegmentationConfig)
    for part in ("backbone", "image_size", "data", "inference", "head", "auxiliary", "seed"):
        assert getattr(adapter, part) == getattr(linear, part)
    assert adapter.train.epochs == linear.train.epochs
