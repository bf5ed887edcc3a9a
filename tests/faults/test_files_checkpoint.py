"""A checkpoint that is not what was written is refused before anything in it is used, with the way on."""

import dataclasses
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.damage import cuts, flips
from tests.runs import DROPOUT, tiny_config, write_images
from vpeft.run import train
from vpeft.tasks import checkpoint_file
from vpeft.tasks.resuming import StepSeeds

REFUSED = (
    r"last\.ckpt is damaged, incomplete or of an older version: it has not the sha256 .* delete it: the same command "
    "then starts this run from its beginning"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """A run that died in its second epoch, and the adapter of one that did not."""
    base = tmp_path_factory.mktemp("stopped")
    train(tiny_config(images, base / "whole", DROPOUT, epochs=2))
    start = StepSeeds.on_train_batch_start

    def die(self, trainer, module, batch, index):
        start(self, trainer, module, batch, index)
        if (trainer.current_epoch, index) == (1, 3):
            raise KeyError("dead")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepSeeds, "on_train_batch_start", die)
        with pytest.raises(KeyError, match="dead"):
            train(tiny_config(images, base / "dead", DROPOUT, epochs=2))
    return base / "dead", load_file(base / "whole/run/adapter.safetensors")


@pytest.fixture
def resumed(images, stopped, tmp_path):
    output, expected = tmp_path / "out", stopped[1]
    shutil.copytree(stopped[0], output)
    config = tiny_config(images, output, DROPOUT, epochs=2)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True)), expected


def content(config):
    return {path: path.read_bytes() for path in sorted(config.output.rglob("*")) if path.is_file()}


def assert_equal_to(expected, config):
    found = load_file(config.output / "run" / "adapter.safetensors")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_checkpoint_cut_anywhere_is_refused(stopped, tmp_path):
    whole, file = (stopped[0] / "run/last.ckpt").read_bytes(), tmp_path / "last.ckpt"
    for _, cut in cuts(whole):
        file.write_bytes(cut)
        with pytest.raises(ValueError, match=REFUSED):
            checkpoint_file.find(file)
    file.write_bytes(whole)
    assert checkpoint_file.find(file) == file


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(stopped, tmp_path):
    whole, file = (stopped[0] / "run/last.ckpt").read_bytes(), tmp_path / "last.ckpt"
    for changed in [*flips(whole, 300), *flips(whole, 60, first=len(whole) - 100)]:
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=REFUSED):
            checkpoint_file.find(file)
        with pytest.raises(ValueError, match=REFUSED):
            checkpoint_file.read(file)


def test_a_checkpoint_with_something_appended_is_refused(stopped, tmp_path):
    file = tmp_path / "last.ckpt"
    file.write_bytes((stopped[0] / "run/last.ckpt").read_bytes() + b"\0")
    with pytest.raises(ValueError, match=REFUSED):
        checkpoint_file.find(file)


@pytest.mark.parametrize("damage", ["flipped", "empty", pytest.param("cut", marks=pytest.mark.slow)])
def test_a_run_is_not_resumed_from_a_damaged_checkpoint_and_starts_again_without_it(resumed, damage):
    config, expected = resumed
    file = config.output / "run" / "last.ckpt"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[:4000], "flipped": next(flips(whole, 1, 3000, 9000)), "empty": b""}[damage])
    before = content(config)
    with pytest.raises(ValueError, match=REFUSED):
        train(config)
    assert content(config) == before, "a refusal changes nothing"
    file.unlink()
    train(config)
    assert_equal_to(expected, config)


def test_a_copy_that_is_put_back_is_gone_on_from(resumed, capsys):
    config, expected = resumed
    file = config.output / "run" / "last.ckpt"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=REFUSED):
        train(config)
    file.write_bytes(whole)
    train(config)
    assert ", resumed" in capsys.readouterr().out
    assert_equal_to(expected, config)


def test_a_checkpoint_is_a_plain_archive_that_torch_opens_without_code(stopped):
    file = stopped[0] / "run" / "last.ckpt"
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"vpeft sha256 ")
    ours, theirs = checkpoint_file.read(file), torch.load(file, weights_only=True)
    assert ours["epoch"] == theirs["epoch"] == 0
    assert all(torch.equal(ours["state_dict"][name], theirs["state_dict"][name]) for name in theirs["state_dict"])


def test_there_may_be_no_checkpoint(tmp_path):
    assert checkpoint_file.find(tmp_path / "last.ckpt") is None
    with pytest.raises(FileNotFoundError):
        checkpoint_file.read(tmp_path / "last.ckpt")
