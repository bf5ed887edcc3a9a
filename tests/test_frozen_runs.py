"""Runs with train.frozen bf16 end in the bits of those without it, and say so."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.runs import DROPOUT, SGD, tiny_config, write_images
from tests.segmentation_runs import own_data, writer
from vpeft import backbones, frozen, run, search
from vpeft.config import ConfigError, parse, resolve
from vpeft.evaluation import open_data
from vpeft.evaluation import test as measure
from vpeft.methods import METHODS
from vpeft.packed import train_together
from vpeft.packed.fit import NOT_PACKED
from vpeft.predict import Classifier
from vpeft.results.entry import _machine
from vpeft.results.setting import fingerprint
from vpeft.search_settings import SearchConfig
from vpeft.suite.members import member
from vpeft.tasks.build import build_task
from vpeft.tasks.resuming import Interrupted

BF16 = {"precision": "bf16-mixed", "frozen": "bf16"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


def plainly(config):
    """The same run with its frozen weights in single precision, beside it."""
    train = dataclasses.replace(config.train, frozen="fp32")
    return dataclasses.replace(config, train=train, output=config.output.with_name(f"{config.output.name}-fp32"))


def adapter(config):
    return load_file(config.output / (config.name or "") / "adapter.safetensors")


def assert_same_bits(config, other):
    ours, theirs = adapter(config), adapter(other)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(tensor.dtype == torch.bfloat16 for tensor in ours.values())


def test_a_run_ends_in_the_same_bits_and_its_row_says_how_its_weights_were_stored(images, tmp_path):
    config = tiny_config(images, tmp_path / "runs", DROPOUT, epochs=2, ema=0.8, selection="best_val", **BF16)
    config.drop_path, config.head.batch_norm, config.data.augment = 0.2, True, "flip"
    row, plain = run.train(config), run.train(plainly(config))
    assert_same_bits(config, plainly(config))
    for part in ("test", "val", "selection", "parameters", "backbone"):
        assert row[part] == plain[part]
    assert (row["train"]["frozen"], plain["train"]["frozen"]) == ("bf16", "fp32")
    assert fingerprint(row) == fingerprint(plain), "it is no other protocol"
    assert str(_machine(row)).endswith("bf16-mixed, frozen bf16")
    assert str(_machine(plain)).endswith("bf16-mixed")
    assert member(config, "lora", "final").id == member(plainly(config), "lora", "final").id


def test_its_adapter_is_tested_and_merged_on_weights_in_single_precision(images, tmp_path):
    config = tiny_config(images, tmp_path / "runs", epochs=1, **BF16)
    run.train(config)
    classifier = Classifier(tmp_path / "runs/run/adapter.safetensors", device="cpu")
    assert not frozen.count(classifier.tuned)
    data = open_data(classifier, [("data.root", str(images)), ("data.format", "folder")], "a")
    assert 0 <= measure(classifier, data).accuracy <= 1
    merged = classifier.tuned.merge()
    plain = backbones.create(config.backbone, "none", 32, config.seed)
    plain.model.load_state_dict(merged)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels), classifier.tuned.backbone(pixels), rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_with_its_weights_stored_otherwise(images, tmp_path, monkeypatch):
    config = tiny_config(images, tmp_path / "runs", DROPOUT, **BF16)
    run.train(plainly(config))
    monkeypatch.setattr(run, "LOG_EVERY", 1)
    with pytest.raises(Interrupted):
        _stopped_after(2, config, monkeypatch)
    run.train(dataclasses.replace(config, train=dataclasses.replace(config.train, frozen="fp32", resume=True)))
    assert_same_bits(config, plainly(config))


def _stopped_after(epochs, config, monkeypatch):
    from vpeft.tasks.classification import Classification

    ended = Classification.on_validation_epoch_end

    def stop(task):
        ended(task)
        if task.trainer.current_epoch + 1 == epochs:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Classification, "on_validation_epoch_end", stop)
        run.train(config)


def test_packed_runs_share_the_stored_weights(images, tmp_path):
    runs = [tiny_config(images, tmp_path / "runs", DROPOUT, epochs=1, **BF16) for _ in range(2)]
    weights = tmp_path / "weights.safetensors"
    _save_weights(runs[0], weights)
    for seed, config in enumerate(runs):
        config.seed, config.name, config.pretrained = seed, f"run{seed}", str(weights)
    rows = train_together(runs)
    plain = train_together([plainly(config) for config in runs])
    for config, row, other in zip(runs, rows, plain, strict=True):
        assert_same_bits(config, plainly(config))
        assert row["test"] == other["test"]
    with pytest.raises(ConfigError, match=r"differ in train\.frozen, bf16 and fp32"):
        train_together([runs[0], plainly(runs[1])])


def _save_weights(config, file):
    from safetensors.torch import save_file

    body = backbones.create(config.backbone, "none", 32)
    save_file({name: tensor.contiguous() for name, tensor in body.model.state_dict().items()}, file)


SIZES = {"evp": {"size": 3}, "ilm_vp": {"inner": 24}, "vp": {"size": 3}}  # for images of 32 pixels
ONE_LABEL = [name for name in METHODS if name not in (*NOT_PACKED, "dam_vp", "mtlora", "polyhistor")]


@pytest.mark.slow
@pytest.mark.parametrize("method", ONE_LABEL)
def test_every_method_packs_on_stored_weights(images, tmp_path, method):
    spec = {"name": method, **SIZES.get(method, {})}
    runs = [tiny_config(images, tmp_path / "runs", spec, epochs=1, **BF16) for _ in range(2)]
    for at, config in enumerate(runs):
        config.name, config.optim = f"run{at}", dataclasses.replace(config.optim, lr=0.01 * (at + 1))
    train_together(runs)
    train_together([plainly(config) for config in runs])
    for config in runs:
        assert_same_bits(config, plainly(config))


@pytest.mark.parametrize(
    "neck",
    [
        "{name: last}",
        "{name: vit_adapter, regime: injector, inplanes: 4, heads: 2, vit_features: false, interactions: 2}",
    ],
)
def test_segmentation_ends_in_the_same_bits(tmp_path, neck):
    config = parse([writer(tmp_path, own_data(tmp_path))(neck=neck, auxiliary="null"), "--train.epochs", "1"])
    config.train = dataclasses.replace(config.train, **BF16)
    row, plain = run.train(config), run.train(plainly(config))
    assert_same_bits(config, plainly(config))
    assert row["test"] == plain["test"]


def test_several_tasks_end_in_the_same_bits(tmp_path):
    from tests.test_multitask_run import MTLORA, TEXT

    file = tmp_path / "config.yaml"
    file.write_text(TEXT.format(method=MTLORA, output=tmp_path / "runs"))
    config = parse([str(file), "--train.epochs", "1"])
    config.train = dataclasses.replace(config.train, **BF16)
    row, plain = run.train(config), run.train(plainly(config))
    assert_same_bits(config, plainly(config))
    assert row["test"] == plain["test"]


def test_a_search_measures_subnets_under_autocast(images, tmp_path):
    settings = SearchConfig(
        budget=6000, epochs=1, lr=0.01, prompts=[1, 3], lora=[1, 2], adapter=[1, 4],
        generations=1, population=3, parents=2, mutations=1, crossovers=1,
    )  # fmt: skip
    method = {"name": "noah", "prompts": 3, "lora": 2, "adapter": 4}
    config = tiny_config(images, tmp_path / "runs", method, epochs=1, **BF16)
    files = [search.search(one, settings) for one in (config, plainly(config))]
    ours, theirs = (json.loads((file.parent / "search.json").read_text())["measured"] for file in files)
    assert ours == theirs


def test_processes_that_share_a_model_compute_the_same_bits(tmp_path):
    multiprocessing.spawn(hold, (str(tmp_path / "meeting"),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]


def hold(rank: int, meeting: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    config = tiny_config(Path(), Path(), [{"name": "lora", "rank": 2}, {"name": "bitfit"}])
    for strategy in ("fsdp", "ddp"):
        found = []
        for kind in ("fp32", "bf16"):
            torch.manual_seed(0)
            task = build_task(config, backbones.create(config.backbone, "none", 32), ["a", "b"])
            frozen.store(task.tuned, kind)
            task._device_mesh = mesh if strategy == "fsdp" else None
            task.configure_model()
            model = DistributedDataParallel(task.tuned) if strategy == "ddp" else task.tuned
            torch.manual_seed(rank)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(torch.randn(3, 3, 32, 32))
            out.float().square().sum().backward()
            found.append([out.detach(), *(_own(p.grad) for _, p in task.tuned.trainable())])
        assert all(torch.equal(one, two) for one, two in zip(*found, strict=True)), strategy
    torch.distributed.destroy_process_group()


def _own(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def test_it_is_refused_where_autocast_casts_nothing():
    with pytest.raises(ConfigError, match=r"casts at every step, and train\.precision is 32-true; give bf16-mixed"):
        resolve({"train": {"frozen": "bf16"}}, "c.yaml")


@pytest.mark.parametrize(
    ("method", "head"), [("fishmask", "linear"), ("dam_vp", "linear"), ("linear", "label_mapping")]
)
def test_it_is_refused_where_images_are_looked_at_in_single_precision(images, tmp_path, method, head):
    config = tiny_config(images, tmp_path, {"name": method}, **BF16)
    config.head.kind = head
    who = method if head == "linear" else head
    with pytest.raises(ConfigError, match=f"in which {who} looks at images before it trains on them; leave"):
        run.train(config)


def test_it_is_refused_where_every_weight_is_trained(images, tmp_path):
    with pytest.raises(ValueError, match="finds nothing to store: full trains or reads every weight of test_vit"):
        run.train(tiny_config(images, tmp_path, {"name": "full"}, **BF16))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow  # the compiler takes most of a minute
def test_a_compiled_run_ends_as_one_that_is_not(images, tmp_path):
    rows = []
    for name, settings in (("plain", {}), ("compiled", {"compile": True}), ("both", {"compile": True, **BF16})):
        rows.append(run.train(tiny_config(images, tmp_path / name, optim=SGD, **settings)))
    plain, compiled, both = rows
    assert compiled["test"]["loss"] == pytest.approx(plain["test"]["loss"], rel=1e-4)
    assert both["test"]["loss"] == pytest.approx(plain["test"]["loss"], rel=1e-2)
    assert (plain["train"]["compile"], compiled["train"]["compile"]) == (False, True)
    ours, theirs = (load_file(tmp_path / name / "run/adapter.safetensors") for name in ("compiled", "plain"))
    assert set(ours) == set(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4 * theirs[name].abs().max().item())
