"""The open-vocabulary task: what it trains, measures and keeps."""

import math
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch

from tests.data.test_openvocab import data, own
from tests.dense.clips import SIDE, small_clip, words
from vpeft.data.masks import ClassTable
from vpeft.dense import san_weights
from vpeft.dense.openvocab_schema import (
    MaskLossConfig,
    OpenVocabConfig,
    OpenVocabDataConfig,
    PolyOptimConfig,
    SANConfig,
)
from vpeft.dense.san import SAN
from vpeft.schema import mistakes
from vpeft.tasks.openvocab import OpenVocab, build
from vpeft.yaml_file import read_yaml

ROOT = Path(__file__).parents[2]

TABLE = ClassTable.of(["cat", "sofa"])


def task(**optim):
    torch.manual_seed(0)
    san = SAN(small_clip(), words, (0, 1, 2), **SIDE)
    return OpenVocab(san, TABLE, {"pets": TABLE}, MaskLossConfig(points=16), PolyOptimConfig(**optim))


def trainer(tmp_path, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        use_distributed_sampler=False,
        **quiet,
        **({"max_steps": 2} | options),
    )


def test_training_changes_only_what_is_trained_and_measures(tmp_path):
    module = task(lr=1e-2)
    before = {name: tensor.clone() for name, tensor in module.san.state_dict().items()}
    run = trainer(tmp_path)
    run.fit(module, data(own(tmp_path / "pets")))
    changed = {name for name, tensor in module.san.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed <= set(module.san.trained())
    assert {"text.background", "clip.visual.positional_embedding", "side.queries"} <= changed
    found = module.evaluation["pets"]
    assert 0 <= found.miou <= 1
    assert len(found.iou) == 2
    assert "val/pets/miou" in run.callback_metrics


def test_every_supervised_block_learns_though_a_san_is_built_for_evaluation(tmp_path, monkeypatch):
    module, seen = task(), []
    module.san.eval()
    loss = module.loss.forward
    monkeypatch.setattr(
        module.loss, "forward", lambda proposals, *rest: seen.append(proposals) or loss(proposals, *rest)
    )
    trainer(tmp_path, max_steps=2, val_check_interval=1).fit(module, data(own(tmp_path / "pets")))
    assert [len(found) for found in seen] == [2, 2]


def test_a_checkpoint_holds_what_is_trained_and_resumes(tmp_path):
    module, folder = task(), own(tmp_path / "pets")
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, data(folder))
    run.save_checkpoint(tmp_path / "one.ckpt")
    stored = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert set(stored["state_dict"]) == {f"san.{name}" for name in module.san.trained()}
    other = task()
    trainer(tmp_path, max_steps=1).fit(other, data(folder), ckpt_path=str(tmp_path / "one.ckpt"))
    assert torch.equal(other.san.side.queries, module.san.side.queries)


def test_a_checkpoint_of_another_san_is_refused():
    module = task()
    with pytest.raises(ValueError, match="does not fit this SAN"):
        module.on_load_checkpoint({"state_dict": {"san.side.queries": torch.zeros(1)}, "evaluation": {}})


def test_the_learning_rate_falls_as_a_polynomial_without_warm_up(tmp_path):
    module = task(lr=0.1)
    run = trainer(tmp_path, max_steps=4, limit_val_batches=0)
    rates = []

    class Note(L.Callback):
        def on_train_batch_start(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    run.callbacks.append(Note())
    run.fit(module, data(own(tmp_path / "pets")))
    assert rates == pytest.approx([0.1 * (1 - step / 4) ** 0.9 for step in range(4)])


def test_positions_and_side_norms_have_no_decay_and_the_rest_has(tmp_path):
    module = task(weight_decay=0.25)
    module.trainer = trainer(tmp_path)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]
    free = {id(parameter) for parameter in groups[1]["params"]}
    named = module.san.trained()
    assert {name for name, parameter in named.items() if id(parameter) in free} == module.san.undecayed()
    assert sum(len(group["params"]) for group in groups) == len(named)


def test_the_whole_gradient_is_clipped():
    module = task(clip=0.01)
    built = torch.optim.SGD(module.san.trained().values(), lr=1.0)
    for parameter in module.san.trained().values():
        parameter.grad = torch.ones_like(parameter)
    module._trainer = trainer(".")
    module.configure_gradient_clipping(built)
    norm = math.sqrt(sum(parameter.grad.square().sum() for parameter in module.san.trained().values()))
    assert norm == pytest.approx(0.01, rel=1e-3)


def test_an_image_of_any_size_is_segmented_at_the_size_of_its_mask():
    found = task().eval()(torch.zeros(1, 3, 40, 70, dtype=torch.uint8), ["cat", "sofa", "floor"], (50, 90))
    assert found.shape == (1, 50, 90)
    assert found.max() <= 2


def test_without_training_data_it_evaluates_and_does_not_train(tmp_path):
    module = OpenVocab(task().san, None, {"pets": TABLE}, MaskLossConfig(), PolyOptimConfig())
    folder = own(tmp_path / "pets")
    trainer(tmp_path).test(module, data(folder), verbose=False)
    assert module.evaluation["pets"].aacc >= 0
    with pytest.raises(ValueError, match="no training data"):
        trainer(tmp_path).fit(module, data(folder))


def test_build_makes_module_and_data_of_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr("vpeft.backbones.load_open_clip.whole", lambda *_: (small_clip(), words))
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    folder = str(own(tmp_path / "pets"))
    options = {name: list(value) if isinstance(value, tuple) else value for name, value in SIDE.items()}
    config = OpenVocabConfig(
        model=SANConfig(taps=[0, 1, 2], **options), data=OpenVocabDataConfig(train=folder, tests=[folder], workers=0)
    )
    module, found = build(config)
    assert module.train_table == found.train_set.table
    assert list(module.test_tables) == ["pets"]
    again = san_weights.create(config.model)
    assert torch.equal(again.side.queries, module.san.side.queries)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: setattr(c.data, "crop", 100), "data.crop"),
        (lambda c: setattr(c.data, "tests", []), "data.tests"),
        (lambda c: setattr(c.data, "flip", 1.5), "data.flip"),
        (lambda c: setattr(c.data, "sizes", [320, 0]), "data.sizes"),
        (lambda c: setattr(c.model, "clip_scale", 0.0), "model.clip_scale"),
        (lambda c: setattr(c.loss, "oversample", 0.5), "loss.oversample"),
        (lambda c: setattr(c.train, "steps", 0), "train.steps"),
        (lambda c: setattr(c.data, "long_side", 10), "data.long_side"),
    ],
)
def test_settings_out_of_range_are_named(change, key):
    config = OpenVocabConfig()
    assert list(mistakes(config)) == []
    change(config)
    assert [found for found, _ in mistakes(config)] == [key]


@pytest.mark.parametrize("name", san_weights.MODELS)
def test_shipped_configs_are_the_official_recipe(name):
    tree = read_yaml(f"{ROOT}/configs/openvocab/{name}.yaml")
    assert tree.pop("kind") == "openvocab"
    assert SANConfig(**tree["model"]) == san_weights.MODELS[name]
    official = OpenVocabConfig()
    for section, given in tree.items():
        settings = asdict(getattr(official, section)) | (tree["model"] if section == "model" else {})
        for key, value in given.items():
            expected = settings[key] if (section, key) != ("train", "precision") else "16-mixed"
            assert (type(expected)(value) if isinstance(expected, float | Path) else value) == expected, key
