"""Questions about flat shades, and in the place of the model what says which shade it sees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from mllm.data.module import MultimodalData
from mllm.data_schema import DataConfig, FilesConfig
from mllm.generate import Decoding
from mllm.schema import EvaluationConfig

SHADES = [20 * i for i in range(10)]


def write(root: Path, records: Sequence[dict[str, Any]]) -> None:
    (root / "talks.json").write_text(json.dumps(records))
    for i, shade in enumerate(SHADES):
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(root / f"{i}.png")


def asked(i: int, answer: str, images: int = 1, **more: Any) -> dict[str, Any]:
    shown = {"image": [f"{(i + k) % len(SHADES)}.png" for k in range(images)]} if images else {}
    turns = [{"from": "human", "value": "<image>" * images + " a b ?"}, {"from": "gpt", "value": answer}]
    return {"id": f"number {i}", **shown, "conversations": turns, **more}


def ten(root: Path) -> Path:
    write(root, [asked(i, "bcdefghijk"[i]) for i in range(10)])
    return root


def data(
    root: Path, model: Any, by_index: bool = False, batch: int = 4, on_missing: Literal["stop", "skip"] = "stop"
) -> MultimodalData:
    files = FilesConfig(train=["talks.json"], test=["talks.json"])
    config = DataConfig(
        task="talks",
        root=root,
        files=files,
        template="bare",
        max_length=100,
        eval_batch_size=batch,
        on_missing=on_missing,
    )
    words, mean = model.about.tokenizer, tuple(model.vision.backbone.normalization[0])
    reader = words if getattr(model.connector, "reads_text", False) else None
    return MultimodalData(config, words, model.connector.tokens, (64, 64), "bilinear", mean, 0, by_index, reader)


def settings(**change: Any) -> EvaluationConfig:
    return EvaluationConfig(**{"score": "exact", "max_new_tokens": 3, **change})


def see(model: Any, batch: Any, decoding: Decoding, ends: Any) -> list[str]:
    """In the place of the model: the letter of the shade that an image has."""
    if "features" in batch:
        return ["none"] * len(batch["input_ids"])
    first = [int((batch["image_row"] < row).sum()) for row in range(len(batch["input_ids"]))]
    shades = [*batch["images"].float().flatten(1).mean(1), -1]
    letters = {20 * i: "bcdefghijk"[i] for i in range(10)}
    return [letters.get(round(float(shades[at])), "none") for at in first]
