"""One flipped bit anywhere in a file is seen before the file is used, or changes nothing that is read from it."""

import json

import torch
from safetensors.torch import save_file

from mllm.adapter import read_adapter
from tests import adapters
from tests.faults.damage import everywhere, flips, header, refusal, seen
from tests.faults.places import textile, vtab_task  # noqa: F401  (fixtures)
from tests.mllm import adapters as multimodal
from vpeft import adapter_file
from vpeft.backbones import embedded as weights
from vpeft.backbones.weights import content_hash
from vpeft.checkpoint import load_adapter, read_manifest
from vpeft.data import embedded, vtab
from vpeft.vtab1k import manifest, verify


def read(file):
    told = read_manifest(file)
    return told, adapter_file.read_tensors(file, told)


def equal(one, other):
    return one[0] == other[0] and content_hash(one[1]) == content_hash(other[1])


def test_no_flipped_bit_of_an_adapter_is_loaded(tmp_path):
    file = tmp_path / "adapter.safetensors"
    adapters.save(file)
    whole, written = file.read_bytes(), read(file)
    found = [seen(file, one, lambda: read(file), lambda got: equal(got, written)) for one in everywhere(whole, 120)]
    assert sum(found) > 0.95 * len(found)
    assert all(found[-120:]), "each in a tensor"
    file.write_bytes(next(flips(whole, 1, header(whole))))
    assert "its content does not have the sha256 it was saved with" in refusal(lambda: load_adapter(file))


def test_no_flipped_bit_of_a_multimodal_adapter_is_loaded(tmp_path):
    file = multimodal.saved(tmp_path)
    whole, written = file.read_bytes(), read_adapter(file)
    changed = everywhere(whole, 60)
    found = [seen(file, one, lambda: read_adapter(file), lambda got: equal(got, written)) for one in changed]
    assert sum(found) > 0.95 * len(found)
    assert all(found[-60:])


def test_no_flipped_bit_of_a_prepared_task_is_read(textile):  # noqa: F811
    file = textile / embedded.MANIFEST
    whole = file.read_bytes()
    for changed in flips(whole, 150):
        file.write_bytes(changed)
        if embedded.find_fault(textile, "textile") is None:
            assert json.loads(changed) == json.loads(whole)
        else:
            assert "is not a whole embedded task" in refusal(lambda: embedded.read(textile, "textile", "train800"))
    # What the manifest says of where the images are from is read too, and no hash of a file covers it.
    for word in (b"800/200", b"MIT", b"conformal"):
        at = whole.index(word)
        for changed in flips(whole, 4, at, at + len(word)):
            file.write_bytes(changed)
            assert embedded.find_fault(textile, "textile") is not None
    file.write_bytes(whole)
    for name in ("train800.txt", "test.txt", "images/train/000003.jpg", "images/val/000009.jpg"):
        content = (textile / name).read_bytes()
        for changed in flips(content, 3):
            (textile / name).write_bytes(changed)
            assert f"{name} is not what its sha256 says" in refusal(
                lambda: embedded.read(textile, "textile", "train800")
            )
        (textile / name).write_bytes(content)


def test_a_manifest_of_before_it_had_a_hash_is_read(textile):  # noqa: F811
    file = textile / embedded.MANIFEST
    content = json.loads(file.read_text())
    del content["sha256"]
    file.write_text(json.dumps(content))
    assert embedded.find_fault(textile, "textile") is None


def test_no_flipped_bit_of_a_vtab_task_is_read(vtab_task):  # noqa: F811
    folder, _ = vtab_task
    listing = vtab.read(folder, "cifar100", "train800")
    for name in (manifest.NAME, "train800.txt", "val200.txt", "test.txt"):
        whole = (folder / name).read_bytes()
        for changed in flips(whole, 60):
            seen(folder / name, changed, lambda: vtab.read(folder, "cifar100", "train800"), lambda got: got == listing)
        (folder / name).write_bytes(whole)
    clean = verify.verify("cifar100", folder.parent)
    for image in ("images/train/000002.png", "images/test/000050.png"):
        whole = (folder / image).read_bytes()
        for changed in flips(whole, 15):
            (folder / image).write_bytes(changed)
            found = verify.verify("cifar100", folder.parent)
            if found == clean:
                continue  # the same pixels
            assert [one.what for one in found if one not in clean] == [image]
        (folder / image).write_bytes(whole)


def test_no_flipped_bit_of_cached_weights_is_loaded(tmp_path, monkeypatch):
    state = {"w": torch.arange(500.0), "b": torch.ones(3)}
    entry = weights.EmbeddedBackbone("a", "p", "1", "0" * 64, 1, "m", content_hash(state), "d", "l")
    monkeypatch.setitem(weights.EMBEDDED, "tiny", entry)
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "_convert", lambda backbone, path: "made again")
    file = tmp_path / "weights" / "tiny.safetensors"
    file.parent.mkdir()
    save_file(state, file)
    whole = file.read_bytes()
    assert weights.embedded_state_dict("tiny") != "made again"
    for changed in everywhere(whole, 200):
        file.write_bytes(changed)
        got = weights.embedded_state_dict("tiny")
        assert got == "made again" or content_hash(got) == content_hash(state)
