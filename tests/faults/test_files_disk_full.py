"""A full disk ends what was going on with a sentence; what was there stays, and with space the run goes on."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.faults.disk import grow, needs_mount, small
from tests.runs import tiny_config, write_images
from vpeft.config import to_yaml
from vpeft.fetch import write_atomic
from vpeft.results import append_row, read_rows
from vpeft.run import train
from vpeft.tasks import checkpoint_file

pytestmark = [
    needs_mount,
    # TensorBoard's thread hands its error on to whoever writes next.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
ROOT = Path(__file__).parents[2]
METHOD = {"name": "linear"}
SLOW = [pytest.param(pages, marks=pytest.mark.slow) for pages in range(1, 40) if pages not in (2, 5, 19)]
FULL = r"No space left on device"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """The adapter of a run that had space, and the pages that all its files take."""
    config = tiny_config(images, tmp_path_factory.mktemp("roomy"), METHOD, epochs=2)
    train(config)
    sizes = [path.stat().st_size for path in config.output.rglob("*") if path.is_file()]
    return load_file(config.output / "run" / "adapter.safetensors"), sum(-(-size // 4096) for size in sizes)


def resumed(config):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))


def leftovers(place):
    return [path for path in place.rglob("*") if path.name.endswith(".tmp")]


# Of a page: config.yaml, run.json, hparams.yaml, the events of training, last.ckpt (3 pages), a second of them while it
# is written, events of the test (many), the adapter, the row, result.json.
@pytest.mark.parametrize("pages", [2, 5, 19, *SLOW])
def test_a_run_that_fills_the_disk_goes_on_when_there_is_space(images, expected, tmp_path, pages):
    adapter, taken = expected
    with small(tmp_path / "disk", pages) as place:
        config = tiny_config(images, place / "out", METHOD, epochs=2)
        # Where all files have room, a second copy of one while it is written may have none.
        with pytest.raises(OSError, match=FULL) if pages < taken else contextlib.suppress(OSError):
            train(config)
        assert not leftovers(place)
        assert len(read_rows(place / "out" / "results.jsonl")) <= 1
        for folder in (place / "out").glob("run*"):
            assert {"config.yaml", "run.json"} <= {path.name for path in folder.iterdir()}
            checkpoint_file.find(folder / "last.ckpt")
        grow(place)
        row = train(resumed(config))
        assert not leftovers(place)
        found = load_file(place / "out" / "run" / "adapter.safetensors")
        assert set(found) == set(adapter)
        assert all(torch.equal(found[name], adapter[name]) for name in adapter)
        assert [known["id"] for known in read_rows(place / "out" / "results.jsonl")] == [row["id"]]
        assert sorted(path.name for path in (place / "out").iterdir()) == ["results.jsonl", "run"]


def test_the_command_says_it_in_a_sentence_and_fails(images, tmp_path):
    with small(tmp_path / "disk", 2) as place:  # for config.yaml and run.json, and none for TensorBoard's curves
        file = tmp_path / "config.yaml"
        file.write_text(to_yaml(tiny_config(images, place / "out", METHOD, epochs=2)))
        done = subprocess.run([sys.executable, "tools/train.py", str(file)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == (
            "error: A file could not be written: No space left on device. Free some space, then give the same command "
            "again; a run goes on with --train.resume true."
        )
        assert "Traceback" not in done.stderr


def append(file, count):
    for number in range(count):
        append_row(file, {"row": number, "text": "x" * 100})


def test_a_row_that_finds_no_space_leaves_the_rows_that_were_there(tmp_path):
    with small(tmp_path / "disk", 1) as place:
        file = place / "results.jsonl"
        with pytest.raises(OSError, match=rf"{FULL}|took only a part of the row: the disk is full"):
            append(file, 1000)
        written = len(read_rows(file))
        assert [row["row"] for row in read_rows(file)] == list(range(written))
        assert written > 10
        assert file.read_bytes().endswith(b"\n")
        grow(place)
        append_row(file, {"row": written})
        assert [row["row"] for row in read_rows(file)] == list(range(written + 1))


@pytest.mark.parametrize("kind", ["bytes", "safetensors", "checkpoint"])
def test_a_file_that_finds_no_space_leaves_the_one_that_was_there(tmp_path, kind):
    def write(path, count):
        if kind == "bytes":
            write_atomic(path, bytes(count))
        elif kind == "safetensors":
            write_atomic(path, lambda file: save_file({"w": torch.zeros(count, dtype=torch.uint8)}, file))
        else:
            checkpoint_file.write(path, {"w": torch.zeros(count, dtype=torch.uint8)})

    with small(tmp_path / "disk", 5) as place:
        write(place / "file", 3000)
        before = (place / "file").read_bytes()
        with pytest.raises(
            OSError, match=rf"file could not be written: .*{FULL}.*the file that was there is unchanged"
        ):
            write(place / "file", 50_000)
        assert (place / "file").read_bytes() == before
        assert os.listdir(place) == ["file"]
