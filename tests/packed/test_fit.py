"""What cannot be one pack is refused before anything is loaded or written, with the reason."""

import dataclasses

import pytest

from tests.packed.runs import prepare, three
from vpeft.config import ConfigError
from vpeft.dense.segmentation_schema import SegmentationConfig
from vpeft.packed import NOT_PACKED, train_together
from vpeft.packed.fit import check

LORA = {"name": "lora", "rank": 2}


@pytest.fixture
def configs(tmp_path):
    return three(tmp_path, tmp_path / "out", LORA)


def refused(configs, words):
    with pytest.raises(ConfigError, match=words):
        check(configs)


@pytest.mark.parametrize("name", NOT_PACKED)
def test_methods_that_no_pack_takes(configs, name):
    for config in configs:
        config.method = {"name": name}
    refused(configs, f"method {name} cannot be packed: {NOT_PACKED[name]}. Train it alone.")


def test_a_patch_at_a_drawn_place(configs):
    for config in configs:
        config.method = [LORA, {"name": "vp", "kind": "random_patch", "size": 4}]
    refused(configs, "method vp cannot be packed: kind random_patch draws one place for the patch at every step")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": {"name": "lora", "rank": 3}}, "differ in method, .*'rank': 2.* and .*'rank': 3"),
        ({"backbone": "vit_tiny_patch16_224"}, "differ in backbone, test_vit.r160_in1k and vit_tiny_patch16_224. One"),
        ({"image_size": 48}, "Members 0 and 1 of the pack differ in image_size, 32 and 48"),
        ({"drop_path": 0.5}, "differ in drop_path, 0.2 and 0.5. One model runs for all members, so they share method,"),
        ({"normalization": "none"}, "differ in normalization, auto and none"),
    ],
)
def test_members_share_their_model(configs, change, words):
    refused([configs[0], dataclasses.replace(configs[1], **change), configs[2]], words)


def test_members_share_their_batch_size(configs):
    configs[2].data.batch_size = 4
    refused(configs, "Members 0 and 2 of the pack differ in data.batch_size, 8 and 4")


def test_members_share_their_precision(configs):
    configs[1].train.precision = "bf16-mixed"
    refused(configs, "differ in train.precision, 32-true and bf16-mixed")


def test_random_backbones_of_several_seeds(configs):
    for config in configs:
        config.pretrained = "none"
    refused(configs, "random backbones of seeds 0 and 1, which share no weights. Give them one seed, or weights")
    for config in configs:
        config.seed = 4
    check(configs)


def test_one_run_twice(configs):
    refused([*configs, dataclasses.replace(configs[1])], "Members 1 and 3 of the pack are one and the same run")


def test_no_run():
    refused([], "A pack needs at least one run, and was given none.")


def test_cached_features(configs):
    for config in configs:
        config.cache_features = True
    refused(configs, "cache_features cannot be packed: it runs the backbone once for every image")


def test_compilation(configs):
    configs[0].train.compile = True
    refused(configs, "train.compile cannot be packed: it compiles one model, and a pack runs several as another.")


@pytest.mark.parametrize("change", [{"devices": 2}, {"nodes": 2}, {"strategy": "fsdp"}])
def test_several_devices(configs, change):
    configs[1].train = dataclasses.replace(configs[1].train, **change)
    refused(configs, "A pack is one process on one device; train.devices is")


def test_other_kinds():
    refused([SegmentationConfig()], "A pack is for kind classification, and a member is of kind segmentation.")  # type: ignore[list-item]


def test_nothing_is_written_when_a_pack_is_refused(tmp_path):
    configs = three(prepare(tmp_path), tmp_path / "out", LORA)
    configs[1].train.compile = True
    with pytest.raises(ConfigError, match=r"train\.compile cannot be packed"):
        train_together(configs)
    assert not (tmp_path / "out").exists()
