"""Readers of `vpeft` beside those of VTAB-1k: adapters, weights, files of other projects, rows, lists, masks, wheels.

What has a hash that is known (the embedded packages, GGUF among them) is not read before the hash fits. MATLAB files
are damaged in folders.py: SciPy's reader can end the process, so they are read in one of their own.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from tests import adapters
from tests.data.masked_layouts import write_folder
from tests.fuzz.reader import Reader, forged
from tests.interop import official_files
from tests.interop.models import weights as golden_weights
from tests.results.suites import suite
from vpeft.backbones import create
from vpeft.backbones import weights as stored
from vpeft.checkpoint import load_adapter
from vpeft.data import archive, images, masked, masks, pascal_prepare
from vpeft.data.matlab import load_mat
from vpeft.dense import san_weights
from vpeft.fetch import read_member
from vpeft.interop import official, peft_format
from vpeft.results import page, records, render, report

_GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_VIT = "vpeft_golden_vit"


def _adapter(folder: Path) -> None:
    adapters.save(folder / "a.safetensors")


def _manifest(folder: Path) -> None:
    _, manifest = adapters.make()
    _adapter(folder)
    manifest = {**manifest, "format": 1, "vpeft": "0", "kind": "classification"}
    manifest["backbone"]["weights"] = {
        "source": "random",
        "origin": "seed 0",
        "sha256": create("test_vit", "none", 32, 0).weights.sha256,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _forged(folder: Path) -> Any:
    file = forged(folder / "a.safetensors", "vpeft")
    return file and load_adapter(file)


def _state(folder: Path) -> dict[str, torch.Tensor]:
    return {"blocks.0.attn.qkv.weight": torch.arange(12.0).reshape(3, 4), "norm.bias": torch.zeros(2)}


def _torch(folder: Path, name: str = "w.pth", **options: Any) -> None:
    torch.save({"model": _state(folder), "epoch": 3}, folder / name, **options)


def _official(folder: Path) -> None:
    golden_weights(folder)
    torch.save(official_files.vpt_prompts("cls_vpt_deep"), folder / "prompts.pth")
    torch.save(official_files.fact_tk("cls_fact_tk"), folder / "fact.pth")


def _read_official(kind: str, file: str, folder: Path) -> Any:
    body = create(GOLDEN_VIT, str(folder / "cls_base.safetensors"))
    return official.read(kind, folder / file, body, {"scale": 0.5} if kind == "fact_tk" else None)


def _peft(folder: Path) -> None:
    _adapter(folder)
    peft_format.export(folder / "a.safetensors", folder / "out")


def _read_peft(folder: Path) -> Any:
    return peft_format.read(folder / "out", create(adapters.NAME, "none", 32, 0))


def _rows(folder: Path) -> None:
    rows = suite(["cifar100", "svhn"], seeds=(0, 1))[:6]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _reported(folder: Path) -> Any:
    found = report.build([folder / "results.jsonl"])
    render.terminal(found, Console(file=io.StringIO(), width=100))
    made = page.html(found, "x"), render.markdown(found), render.latex(found), records.as_csv(found.records)
    return [text.encode() for text in made]


def _mask(folder: Path) -> None:
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) % 3).save(folder / "m.png")


def pascal(folder: Path) -> None:
    from scipy.io import savemat

    part = np.array([("head", np.ones((4, 5), np.uint8))], dtype=[("name", "O"), ("mask", "O")])
    thing = np.array(
        [("person", 15, np.ones((4, 5), np.uint8), part)],
        dtype=[(n, "O") for n in ("class_name", "class_ind", "mask", "parts")],
    )
    anno = np.array([("x", thing)], dtype=[("imname", "O"), ("objects", "O")])
    for place in ("human_parts", "pascal-context/trainval", "JPEGImages", "ImageSets/Context"):
        (folder / place).mkdir(parents=True)
    for part, name in (("train", "a"), ("val", "b")):
        Image.new("RGB", (5, 4)).save(folder / f"JPEGImages/{name}.jpg")
        savemat(folder / f"human_parts/{name}.mat", {"anno": anno}, do_compression=part == "val")
        savemat(folder / f"pascal-context/trainval/{name}.mat", {"LabelMap": np.ones((4, 5), np.uint16)})
        (folder / f"ImageSets/Context/{part}.txt").write_text(f"{name}\n")


def _prepared(folder: Path) -> Any:
    for made in folder.rglob("*.png"):
        made.unlink()
    return list(pascal_prepare.prepare(folder, lambda file: load_mat(file, "unpack the download again")))


def _san(folder: Path) -> None:
    save_file(_state(folder), folder / "s.safetensors", {"vpeft": json.dumps({"kind": "openvocab", "format": 1})})


def _manifest_of_san(folder: Path) -> Any:
    try:
        text = json.dumps(json.loads((folder / "manifest.json").read_bytes()))
    except (ValueError, RecursionError):
        return None
    save_file(_state(folder), folder / "s.safetensors", {"vpeft": text})
    return san_weights.read_manifest(folder / "s.safetensors")


def _san_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"kind": "openvocab", "format": 1, "vpeft": "0"}))


def _wheel(folder: Path) -> None:
    import zipfile

    with zipfile.ZipFile(folder / "w.whl", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/b.txt", "text " * 50)
        opened.writestr("c.bin", bytes(range(200)))


def _unwrapped(folder: Path) -> Any:
    with archive.open_archive(folder / "w.whl") as opened:
        return [opened.read(name) for name in opened.names]


def _written(name: str, data: bytes, folder: Path) -> None:
    (folder / name).write_bytes(data)


def _npz(folder: Path) -> None:
    from tests.backbones.test_weights import google_npz

    google_npz(timm.create_model(GOLDEN_VIT, img_size=32, num_classes=5), folder / "g.npz")


_PICKLE = pickle.dumps(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
_IDX = gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + bytes(24), mtime=0)
_PNG = io.BytesIO()
Image.new("RGB", (9, 7), (1, 2, 3)).save(_PNG, "PNG")
_CLASSES = b"sky #0000ff\nroad #808080\ntree #00ff00\n"

READERS: dict[str, Reader] = {
    "adapter": Reader(_adapter, "a.safetensors", lambda at: load_adapter(at / "a.safetensors")),
    "adapter with a true hash": Reader(_manifest, "manifest.json", _forged, "json"),
    "weights .safetensors": Reader(
        lambda at: save_file(_state(at), at / "w.safetensors"),
        "w.safetensors",
        lambda at: stored.load_file(at / "w.safetensors"),
    ),
    "weights .pth": Reader(_torch, "w.pth", lambda at: stored.load_file(at / "w.pth")),
    "weights .pth, old": Reader(
        partial(_torch, _use_new_zipfile_serialization=False), "w.pth", lambda at: stored.load_file(at / "w.pth")
    ),
    "weights .npz": Reader(_npz, "g.npz", lambda at: create(GOLDEN_VIT, str(at / "g.npz"), 32)),
    "official vpt": Reader(_official, "prompts.pth", partial(_read_official, "vpt", "prompts.pth")),
    "official fact": Reader(_official, "fact.pth", partial(_read_official, "fact_tk", "fact.pth")),
    "peft config": Reader(_peft, "out/adapter_config.json", _read_peft, "json"),
    "peft weights": Reader(_peft, "out/adapter_model.safetensors", _read_peft),
    "SAN manifest": Reader(_san_manifest, "manifest.json", _manifest_of_san, "json"),
    "result rows": Reader(_rows, "results.jsonl", _reported, "jsonl"),
    "mask": Reader(_mask, "m.png", lambda at: masks.read_mask(at / "m.png", masks.ClassTable.of(["a", "b", "c"]))),
    "classes": Reader(
        partial(_written, "classes.txt", _CLASSES),
        "classes.txt",
        lambda at: masks.read_classes(at / "classes.txt"),
        "text",
    ),
    "mask folder": Reader(write_folder, "classes.txt", lambda at: masked.read(at, "own", "train"), "text"),
    "PASCAL list": Reader(pascal, "ImageSets/Context/val.txt", _prepared, "text"),
    "wheel": Reader(_wheel, "w.whl", _unwrapped),
    "wheel, a member": Reader(_wheel, "w.whl", lambda at: read_member(at / "w.whl", "c.bin")),
    "pickled array": Reader(
        partial(_written, "a.pkl", _PICKLE), "a.pkl", lambda at: archive.unpickle_array((at / "a.pkl").read_bytes())
    ),
    "IDX": Reader(partial(_written, "a.gz", _IDX), "a.gz", lambda at: archive.read_idx((at / "a.gz").read_bytes())),
    "IDX inner": Reader(
        partial(_written, "a.gz", _IDX), "a.gz", lambda at: archive.read_idx((at / "a.gz").read_bytes()), member=""
    ),
    "image": Reader(partial(_written, "i.png", _PNG.getvalue()), "i.png", lambda at: images.decode(at / "i.png")),
}
