"""Files that end after any kilobyte are refused with what to do, or made again; what is whole in them is kept."""

import warnings

import torch
from safetensors.torch import save_file

from mllm.adapter import read_adapter
from tests import adapters
from tests.faults.damage import cuts, refusal
from tests.faults.places import textile, vtab_task  # noqa: F401  (fixtures)
from tests.mllm import adapters as multimodal
from vpeft.backbones import embedded as weights
from vpeft.backbones.weights import content_hash
from vpeft.checkpoint import load_adapter
from vpeft.data import embedded, prepare, vtab
from vpeft.results import append_row, read_rows
from vpeft.vtab1k import manifest
from vpeft.vtab1k.export import export


def test_an_adapter_cut_anywhere_is_refused(tmp_path):
    file = tmp_path / "adapter.safetensors"
    adapters.save(file)
    whole = file.read_bytes()
    for _, cut in cuts(whole):
        file.write_bytes(cut)
        assert "is damaged or not a safetensors file" in refusal(lambda: load_adapter(file))
        assert "copy or make it again" in refusal(lambda: load_adapter(file))
    file.write_bytes(whole)
    load_adapter(file)


def test_a_multimodal_adapter_cut_anywhere_is_refused(tmp_path):
    file = multimodal.saved(tmp_path)
    whole = file.read_bytes()
    for _, cut in cuts(whole):
        file.write_bytes(cut)
        assert "copy or make it again" in refusal(lambda: read_adapter(file))
    file.write_bytes(whole)
    read_adapter(file)


def test_results_cut_anywhere_keep_their_whole_rows_and_take_further_ones(tmp_path):
    file = tmp_path / "results.jsonl"
    rows = [{"id": f"{number}", "text": "x" * 700} for number in range(12)]
    for row in rows:
        append_row(file, row)
    whole = file.read_bytes()
    for length, cut in cuts(whole):
        file.write_bytes(cut)
        kept = cut.count(b"\n")
        torn = bool(cut) and not cut.endswith(b"\n")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_rows(file)
        assert found[:kept] == rows[:kept]
        # A row that only lacks its line break is whole.
        assert len(found) == kept + (length == len(whole) - 1)
        told = [str(one.message) for one in said]
        lost = [f"{file}, line {kept + 1}: not a whole result row; it is left out."]
        assert told == (lost if torn and len(found) == kept else [])
        append_row(file, {"id": "next"})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert read_rows(file) == [*found, {"id": "next"}]


def test_a_prepared_task_cut_anywhere_is_refused_and_made_again(textile, tmp_path):  # noqa: F811
    file = textile / embedded.MANIFEST
    whole = file.read_bytes()
    for _, cut in cuts(whole):
        file.write_bytes(cut)
        said = refusal(lambda: embedded.read(textile, "textile", "train800"))
        assert "is not a whole embedded task: manifest.json is damaged" in said
        assert "python data_prep/embedded.py --tasks textile --root" in said
    prepare.prepare("textile", textile.parent)
    assert file.read_bytes() == whole
    for name in ("train800.txt", "images/test/000007.jpg"):
        content = (textile / name).read_bytes()
        (textile / name).write_bytes(content[:-1])
        assert f"{name} is not what its sha256 says" in refusal(lambda: embedded.read(textile, "textile", "train800"))
        prepare.prepare("textile", textile.parent)
        assert (textile / name).read_bytes() == content


def test_a_vtab_task_cut_anywhere_is_refused_and_made_again(vtab_task):  # noqa: F811
    folder, selection = vtab_task
    for name in (manifest.NAME, "train800.txt", "test.txt"):
        file = folder / name
        whole = file.read_bytes()
        for _, cut in cuts(whole.rstrip(b"\n")):  # without its last line break a manifest is whole
            file.write_bytes(cut)
            said = refusal(lambda: vtab.read(folder, "cifar100", "train800"))
            if name == manifest.NAME:
                assert "Run the command that made it again (python data_prep/vtab1k.py --tasks cifar100" in said
        export(selection, folder.parent)
        vtab.read(folder, "cifar100", "train800")
        if name != manifest.NAME:  # which has a date
            assert file.read_bytes() == whole


def test_cached_weights_cut_anywhere_are_made_again(tmp_path, monkeypatch, capsys):
    state = {"w": torch.arange(1000.0), "b": torch.ones(3)}
    entry = weights.EmbeddedBackbone("a", "p", "1", "0" * 64, 1, "m", content_hash(state), "d", "l")
    monkeypatch.setitem(weights.EMBEDDED, "tiny", entry)
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    made = []

    def convert(backbone, path):
        made.append(path)
        save_file(state, path)
        return state

    monkeypatch.setattr(weights, "_convert", convert)
    weights.embedded_state_dict("tiny")
    file = made.pop()
    whole = file.read_bytes()
    for _, cut in cuts(whole):
        file.write_bytes(cut)
        assert content_hash(weights.embedded_state_dict("tiny")) == content_hash(state)
        assert made.pop() == file
        assert f"{file} is damaged and is made again" in capsys.readouterr().err
        assert file.read_bytes() == whole
    weights.embedded_state_dict("tiny")
    assert not made
