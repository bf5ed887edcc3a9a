"""A disk that fills up under data, a cache or a suite: nothing half done is taken for whole, and it goes on."""

import pytest
import torch
from safetensors.torch import save_file

from tests.faults.disk import grow, needs_mount, small
from tests.faults.places import textile, vtab_task  # noqa: F401  (fixtures)
from tests.suite.conftest import ask, images, workers_find_this_package, write  # noqa: F401  (fixtures)
from vpeft.backbones import embedded as weights
from vpeft.backbones.weights import content_hash
from vpeft.data import embedded, prepare, vtab
from vpeft.fetch import write_atomic
from vpeft.results import read_rows
from vpeft.suite import command
from vpeft.vtab1k.export import export

pytestmark = needs_mount
FULL = "No space left on device"


@pytest.mark.parametrize("pages", [3, 900])
def test_a_task_that_fills_the_disk_is_made_when_there_is_space(textile, tmp_path, pages):  # noqa: F811
    with small(tmp_path / "disk", pages) as place:
        with pytest.raises(RuntimeError, match=rf"textile could not be written: {FULL}\. What was there is as it was"):
            prepare.prepare("textile", place)
        assert [path.name for path in place.iterdir()] == ["textile.lock"]
        grow(place)
        folder = prepare.prepare("textile", place)
        assert embedded.find_fault(folder, "textile") is None
        assert embedded.read(folder, "textile", "train800").train.labels == (
            embedded.read(textile, "textile", "train800").train.labels
        )


@pytest.mark.parametrize("pages", [6, 60, 118])
def test_a_vtab_task_that_fills_the_disk_goes_on_when_there_is_space(vtab_task, tmp_path, pages):  # noqa: F811
    folder, selection = vtab_task
    with small(tmp_path / "disk", pages) as place:
        with pytest.raises(OSError, match=FULL):
            export(selection, place)
        assert not list(place.rglob("*.tmp"))
        with pytest.raises(ValueError, match=r"missing|stopped before"):
            vtab.read(place / "cifar100", "cifar100", "train800")
        grow(place)
        export(selection, place)
        found, expected = (vtab.read(one, "cifar100", "train800") for one in (place / "cifar100", folder))
        assert found.provenance["pixels"] == expected.provenance["pixels"]
        assert {path.name for path in (place / "cifar100").iterdir()} == {path.name for path in folder.iterdir()}


def test_weights_that_fill_the_disk_are_cached_when_there_is_space(tmp_path, monkeypatch):
    state = {"w": torch.arange(10_000.0)}
    entry = weights.EmbeddedBackbone("a", "p", "1", "0" * 64, 1, "m", content_hash(state), "d", "l")
    monkeypatch.setitem(weights.EMBEDDED, "tiny", entry)

    def convert(backbone, path):
        write_atomic(path, lambda file: save_file(state, file))
        return state

    monkeypatch.setattr(weights, "_convert", convert)
    with small(tmp_path / "disk", 5) as place:
        monkeypatch.setenv("VPEFT_CACHE", str(place))
        with pytest.raises(OSError, match=rf"tiny.safetensors could not be written: .*{FULL}.*no file is left behind"):
            weights.embedded_state_dict("tiny")
        assert [path.name for path in (place / "weights").iterdir()] == ["tiny.safetensors.lock"]
        grow(place)
        assert content_hash(weights.embedded_state_dict("tiny")) == entry.sha256
        assert (place / "weights" / "tiny.safetensors").stat().st_size > 40_000


@pytest.mark.slow
@pytest.mark.parametrize("pages", [4, 12, 40])
def test_a_suite_that_fills_the_disk_goes_on_when_there_is_space(write, ask, tmp_path, pages, capfd):  # noqa: F811
    request = ask(write("lora", epochs=1), "--seeds", "0,1")
    with small(request.output, pages) as place:
        ended = _run(request)
        assert ended != 0
        assert "Traceback" not in capfd.readouterr().err
        grow(place)
        assert _run(request) == 0
        rows = read_rows(place / "results.jsonl")
        assert sorted(row["seed"] for row in rows) == [0, 1]
        assert not list(place.rglob("*.tmp"))


def _run(request):
    try:
        return command.run(request)
    except OSError as error:
        return str(error)
