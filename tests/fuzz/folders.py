"""Readers of data sets and models in folders: MATLAB files, ADE20K, PASCAL, SAN, transformers, open_clip, timm.

MATLAB files are read in a process of their own, one for all of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat

from tests.data.masked_layouts import write_folder, write_pair
from tests.dense.clips import small_clip, small_san
from tests.fuzz.reader import Reader
from tests.fuzz.vision import GOLDEN_VIT, pascal
from tests.vtab1k import fakes
from tests.vtab1k.readers import fakes as pictures
from tests.zoo import MODELS, tuned
from vpeft.backbones import create, embedded, load_open_clip, load_timm
from vpeft.data import ade20k, matlab, openvocab_benchmarks, pascal_context, pascal_prepare
from vpeft.data import embedded as tasks
from vpeft.data.segmentation import SegmentationData
from vpeft.dense import san_weights
from vpeft.dense.schema import SegmentationDataConfig
from vpeft.interop.command import classes_of
from vpeft.vtab1k import export
from vpeft.vtab1k.readers import oxford_flowers102, svhn

_COUNTS = {"training": 2, "validation": 1}
_TASKS = ["semseg", "human_parts", "saliency", "normals"]
_CLASSIFIES = "vit_base_patch16_224.augreg_in21k_ft_in1k"
_OPEN = ExitStack()  # the process that reads MATLAB files ends with this one


@cache
def _load() -> matlab.Load:
    return _OPEN.enter_context(matlab.apart("unpack the download again"))


@contextmanager
def _apart(advice: str) -> Iterator[matlab.Load]:
    yield _load()


def _matlab(reader: Any, folder: Path) -> Any:
    with mock.patch.object(reader, "apart", _apart):
        return reader.read(folder, "")


def _flowers(folder: Path) -> None:
    pictures.oxford_flowers102(folder)


def _svhn(compressed: bool, folder: Path) -> None:
    fakes.svhn(folder, {"train": 2, "test": 2})
    images = np.zeros((32, 32, 3, 2), np.uint8)
    savemat(folder / "test_32x32.mat", {"X": images, "y": np.ones((2, 1), np.uint8)}, do_compression=compressed)


def _prepared(folder: Path) -> Any:
    for made in folder.rglob("*.png"):
        made.unlink()
    return list(pascal_prepare.prepare(folder, _load()))


def _ade20k(folder: Path, packed: bool = True) -> None:
    top = folder / ade20k.NAME
    for part, count in _COUNTS.items():
        for i in range(count):
            write_pair(top / "images" / part, top / "annotations" / part, f"ADE_{i}", i)
    (top / "objectInfo150.txt").write_text("Idx")
    if packed:
        with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as opened:
            for file in sorted(top.rglob("*.*")):
                opened.write(file, file.relative_to(folder).as_posix())


def _unpacked(folder: Path) -> Any:
    return ade20k.prepare(Path(tempfile.mkdtemp(dir=folder)), str(folder / "a.zip"), counts=_COUNTS)


def _batch(folder: Path) -> Any:
    data = SegmentationData(SegmentationDataConfig(task="ade20k", root=folder, batch_size=1), (16, 16), 0)
    data.setup("fit")
    return [one["mask"].shape for one in data.test_dataloader()]


def _scenes(folder: Path) -> None:
    pascal(folder)
    for place, mode in (
        ("semseg/VOC12", "L"),
        ("human_parts", "L"),
        ("sal_distill", "L"),
        ("normals_distill", "RGB"),
        ("normals_valid", "L"),
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new(mode, (5, 4), 1 if mode == "L" else (128, 128, 255)).save(folder / place / "b.png")


def _scene(folder: Path) -> Any:
    return pascal_context.PascalContext(folder, "val", _TASKS, (8, 8)).load(0)


def _voc(folder: Path) -> None:
    write_pair(folder / "JPEGImages", folder / "SegmentationClass", "a", 0)
    (folder / "ImageSets/Segmentation").mkdir(parents=True)
    (folder / "ImageSets/Segmentation/val.txt").write_text("a\n")
    Image.new("L", (32, 24), 4).save(folder / "SegmentationClass/a.png")


def _stuff(folder: Path) -> None:
    write_pair(folder / "val2017", folder / "stuffthingmaps/val2017", "a", 0)


def _labelled(name: str, folder: Path) -> Any:
    found = openvocab_benchmarks.locate(name, folder, "val", check_counts=False)
    return [found.read(mask) for mask in found.files.masks]


def _task(folder: Path) -> None:
    write_folder(folder, {"train": 2, "val": 1, "test": 1})
    files = {path: hashlib.sha256((folder / path).read_bytes()).hexdigest() for path in ("classes.txt",)}
    told = {"statement": "x", "licence": "y", "packages": [], "content": "c", "files": files}
    (folder / tasks.MANIFEST).write_text(json.dumps(told))


def _embedded(folder: Path) -> Any:
    with mock.patch.object(tasks, "find_recipe", return_value=SimpleNamespace(content="c")):
        return tasks.read_masked(folder, "scenes", "train")


def _journal(folder: Path) -> None:
    made = {"part": "train", "file": "images/train/0.png", "label": 1, "split": "train", "position": 7, "key": None}
    rows = [{"fingerprint": "f"}, {**made, "size": [1, 1], "bytes": 3, "sha256": "a"}]
    (folder / "images/train").mkdir(parents=True)
    (folder / "images/train/0.png").write_bytes(b"abc")
    (folder / export.manifest.JOURNAL).write_text("".join(json.dumps(row) + "\n" for row in rows))


def _exported(folder: Path) -> Any:
    image = SimpleNamespace(file="images/train/0.png", part="train", split="train", position=7)
    chosen: Any = SimpleNamespace(task="eurosat", fingerprint="f", images=[image])
    return export._kept(folder, chosen)


def _meta(folder: Path) -> None:
    method: Any = tuned("timm_vit", "dam_vp").methods[0]
    parts = {name: one.detach()[:1].clone() for name, one in method.border.named_parameters()}
    save_file(parts, folder / "m.safetensors")


def _started(folder: Path) -> Any:
    method: Any = tuned("timm_vit", "dam_vp").methods[0]
    with torch.no_grad():
        method._load(folder / "m.safetensors")
    return method.border.up.sum()


def _san(folder: Path) -> None:
    save_file({k: v.clone() for k, v in small_san().delta().items()}, folder / "s.safetensors")


def _official(folder: Path) -> None:
    from tests.dense.test_san_weights import complete_checkpoint

    torch.save({"model": complete_checkpoint()}, folder / "m.pth")


def _classes(folder: Path) -> None:
    np.savez(folder / "g.npz", **{"head/kernel": np.zeros((8, 5), np.float32), "head/bias": np.zeros(5, np.float32)})


def _tower(folder: Path) -> None:
    MODELS["hf_clip"]().save_pretrained(folder / "m")  # pyright: ignore[reportCallIssue]
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (folder / "m/preprocessor_config.json").write_text(json.dumps(told))
    (folder / "w.safetensors").write_bytes((folder / "m/model.safetensors").read_bytes())


def _hf(folder: Path, weights: str = "auto") -> Any:
    body = create(f"hf:{folder / 'm'}", str(folder / weights) if weights != "auto" else "auto")
    return body.mean, body.std, body.interpolation


def _clip(folder: Path) -> None:
    save_file({k: v.contiguous() for k, v in small_clip().state_dict().items()}, folder / "c.safetensors")


def _open_clip(folder: Path) -> Any:
    clip = small_clip(seed=1)
    clip.visual.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
    with mock.patch.object(load_open_clip, "_whole", return_value=clip):
        file = str(folder / "c.safetensors")
        return load_open_clip.load("ViT-B-32", file, None, 0)[2], load_open_clip.both("ViT-B-32", file, 0)


def _timm(folder: Path) -> None:
    save_file(timm.create_model(GOLDEN_VIT, img_size=32).state_dict(), folder / "t.safetensors")


def _cached(folder: Path) -> Any:
    return embedded._verified(folder / "t.safetensors", "0" * 64)


_LABELS = {
    "semantic": "semseg/VOC12/b.png",
    "parts": "human_parts/b.png",
    "saliency": "sal_distill/b.png",
    "normals": "normals_distill/b.png",
    "valid": "normals_valid/b.png",
    "image": "JPEGImages/b.jpg",
}

READERS: dict[str, Reader] = {
    "Flowers .mat": Reader(_flowers, "setid.mat", partial(_matlab, oxford_flowers102)),
    "Flowers .mat, compressed": Reader(_flowers, "imagelabels.mat", partial(_matlab, oxford_flowers102)),
    "SVHN .mat": Reader(partial(_svhn, False), "test_32x32.mat", partial(_matlab, svhn)),
    "SVHN .mat, compressed": Reader(partial(_svhn, True), "test_32x32.mat", partial(_matlab, svhn)),
    "PASCAL parts .mat": Reader(pascal, "human_parts/a.mat", _prepared),
    "PASCAL labels .mat": Reader(pascal, "pascal-context/trainval/a.mat", _prepared),
    **{f"PASCAL, {name}": Reader(_scenes, file, _scene) for name, file in _LABELS.items()},
    "ADE20K archive": Reader(_ade20k, "a.zip", _unpacked),
    "ADE20K mask": Reader(partial(_ade20k, packed=False), f"{ade20k.NAME}/annotations/validation/ADE_0.png", _batch),
    "ADE20K image": Reader(partial(_ade20k, packed=False), f"{ade20k.NAME}/images/validation/ADE_0.png", _batch),
    "VOC list": Reader(_voc, "ImageSets/Segmentation/val.txt", partial(_labelled, "voc20"), "text"),
    "VOC mask": Reader(_voc, "SegmentationClass/a.png", partial(_labelled, "voc20")),
    "COCO-Stuff mask": Reader(_stuff, "stuffthingmaps/val2017/a.png", partial(_labelled, "coco_stuff171")),
    "embedded manifest": Reader(_task, tasks.MANIFEST, _embedded, "json"),
    "export's journal": Reader(_journal, export.manifest.JOURNAL, _exported, "jsonl", skips=True),
    "names of classes": Reader(
        lambda at: (at / "c.txt").write_text("a cat\na dog\n"),
        "c.txt",
        lambda at: classes_of(str(at / "c.txt")),
        "text",
    ),
    "meta-prompt": Reader(_meta, "m.safetensors", _started),
    "SAN": Reader(_san, "s.safetensors", lambda at: san_weights.load(small_san(), at / "s.safetensors")),
    "SAN, official": Reader(_official, "m.pth", lambda at: san_weights.load(small_san(), at / "m.pth")),
    "classifier .npz": Reader(_classes, "g.npz", lambda at: load_timm.classifier(_CLASSIFIES, str(at / "g.npz"), 0)),
    "transformers config": Reader(_tower, "m/config.json", _hf, "json"),
    "transformers preprocessing": Reader(_tower, "m/preprocessor_config.json", _hf, "json"),
    "transformers weights": Reader(_tower, "m/model.safetensors", _hf),
    "transformers weights, a file": Reader(_tower, "w.safetensors", partial(_hf, weights="w.safetensors")),
    "open_clip weights": Reader(_clip, "c.safetensors", _open_clip),
    "timm weights": Reader(_timm, "t.safetensors", lambda at: create(GOLDEN_VIT, str(at / "t.safetensors"), 32)),
    "cached backbone": Reader(_timm, "t.safetensors", _cached, skips=True),
}
