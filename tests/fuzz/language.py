"""Readers of `mllm`: conversations, captions, shards, templates, language models, adapters, published connectors."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mllm import language as languages
from mllm import templates
from mllm.adapter import load_adapter
from mllm.connectors.mlp import MLP
from mllm.data import conversations, locate, repair, shards
from mllm.importing import imported
from mllm.templates import restored
from tests.fuzz.reader import Reader, forged
from tests.mllm.adapters import saved
from tests.mllm.data.files import ROUND, pixels, write_images, write_shard, write_talks
from tests.mllm.models import stored
from tests.mllm.shapes import shapes
from vpeft import adapter_file

_SIZES = shapes(20, 32, grid=(3, 3))


def _samples(name: str, folder: Path) -> Any:
    return list(locate._samples(folder / name, folder))


def _talks(folder: Path) -> None:
    records = write_talks(folder, 3)
    (folder / "talks.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))


def _captions(folder: Path) -> None:
    names = write_images(folder / "images", 3)
    records = [{"image": f"images/{name}", "caption": f"a {i}", "id": i} for i, name in enumerate(names)]
    (folder / "c.csv").write_text("image,caption\n" + "".join(f"images/{name},a cat\n" for name in names))
    (folder / "c.tsv").write_text("image\tcaption\n" + "".join(f"images/{name}\ta cat\n" for name in names))
    (folder / "c.json").write_text(json.dumps(records))


def _shard(folder: Path) -> None:
    members = {
        "0.png": pixels(0),
        "0.txt": b" a cat ",
        "1.png": pixels(1),
        "1.json": json.dumps({"caption": "x"}).encode(),
    }
    members |= {"2.png": pixels(2), "2.json": json.dumps({"conversations": ROUND}).encode()}
    write_shard(folder / "s.tar", members)


def _template(folder: Path) -> None:
    entry = templates.read_yaml(templates.FILE)["plain"]
    (folder / "own.yaml").write_text(json.dumps({"mine": entry}, indent=1))


def _model(folder: Path) -> None:
    stored(folder / "language")


def _load(folder: Path) -> Any:
    return languages.load(f"hf:{folder / 'language'}", "auto", "float32").shape


def _adapter(folder: Path) -> None:
    saved(folder)


def _manifest(folder: Path) -> None:
    saved(folder)
    manifest = adapter_file.read_manifest(folder / "adapter.safetensors", "mllm", 1)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _forged(folder: Path) -> Any:
    file = forged(folder / "adapter.safetensors", "mllm")
    if file is None:
        return None
    _, manifest = load_adapter(file, language=f"hf:{folder / 'language'}")
    return restored(manifest["preparation"], file)


def _projector(folder: Path) -> None:
    state = MLP(*_SIZES, depth=2).state_dict()
    named = {"model.mm_projector." + name.removeprefix("layers."): tensor for name, tensor in state.items()}
    torch.save(named, folder / "mm_projector.bin")


def _examined(folder: Path) -> Any:
    return repair.examine(conversations.load_records(folder / "talks.json"), folder, "talks.json")


READERS: dict[str, Reader] = {
    "conversations .json": Reader(_talks, "talks.json", partial(_samples, "talks.json"), "json"),
    "conversations, examined": Reader(_talks, "talks.json", _examined, "json"),
    "conversations .jsonl": Reader(_talks, "talks.jsonl", partial(_samples, "talks.jsonl"), "jsonl"),
    "captions .csv": Reader(_captions, "c.csv", partial(_samples, "c.csv"), "text"),
    "captions .tsv": Reader(_captions, "c.tsv", partial(_samples, "c.tsv"), "text"),
    "captions .json": Reader(_captions, "c.json", partial(_samples, "c.json"), "json"),
    "shard": Reader(_shard, "s.tar", lambda at: list(shards.read(at / "s.tar"))),
    "shard, a record": Reader(_shard, "s.tar", lambda at: list(shards.read(at / "s.tar")), "json", "2.json"),
    "template": Reader(_template, "own.yaml", lambda at: templates.find(str(at / "own.yaml")), "json"),
    "language config": Reader(_model, "language/config.json", _load, "json"),
    "language weights": Reader(_model, "language/model.safetensors", _load),
    "tokenizer": Reader(_model, "language/tokenizer.json", _load, "json"),
    "tokenizer config": Reader(_model, "language/tokenizer_config.json", _load, "json"),
    "mllm adapter": Reader(
        _adapter,
        "adapter.safetensors",
        lambda at: load_adapter(at / "adapter.safetensors", language=f"hf:{at / 'language'}"),
    ),
    "mllm adapter with a true hash": Reader(_manifest, "manifest.json", _forged, "json"),
    "LLaVA projector": Reader(
        _projector, "mm_projector.bin", lambda at: imported(at / "mm_projector.bin", MLP(*_SIZES, depth=2))
    ),
}
