"""A first stage that trains in seconds: flat colours with captions, a tokenizer as BERT's, a random tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mllm.blip2.schema import Blip2Config, Blip2LossConfig
from mllm.data_schema import DataConfig, FilesConfig
from mllm.schema import OptimConfig, TrainConfig, VisionConfig

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (120, 120, 120)}
SHADES = {"dark": 0.4, "bright": 1.2}
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "of", "thing", *COLOURS, *SHADES]
QFORMER: dict[str, Any] = {
    "name": "qformer",
    "tokens": 4,
    "dim": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 48,
    "dropout": 0.0,
    "positions": 16,
}


def bert(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """As BERT's, with a small vocabulary."""
    words = VOCABULARY if words is None else words
    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
    )


def write(folder: Path, count: int = 32) -> Path:
    """Captions and images: `train.json` with `count` pairs, `test.json` with two captions for each of 16 images."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for part, number in (("train", count), ("test", 16)):
        records = []
        for i in range(number):
            colour, shade = list(COLOURS)[i % 4], list(SHADES)[i // 4 % 2]
            value = SHADES[shade] * np.array(COLOURS[colour]) + rng.normal(0, 8, (32, 32, 3))
            Image.fromarray(value.clip(0, 255).astype(np.uint8)).save(folder / f"{part}{i}.png")
            texts = [f"a {shade} {colour} thing", f"a thing of {shade} {colour}"]
            records.append({"image": f"{part}{i}.png", "caption": texts if part == "test" else texts[i // 8 % 2]})
        (folder / f"{part}.json").write_text(json.dumps(records))
    bert().save_pretrained(folder / "bert")
    return folder


def config(folder: Path, output: Path, **train: Any) -> Blip2Config:
    """Of what `write` has written."""
    return Blip2Config(
        vision=VisionConfig("test_vit.r160_in1k", "none", image_size=32, layer=-1, prefix=True, norm=True),
        connector=dict(QFORMER),
        tokenizer=f"hf:{folder / 'bert'}",
        loss=Blip2LossConfig(embed=16),
        data=DataConfig(
            task="colours",
            root=folder,
            files=FilesConfig(train=["train.json"], val=["test.json"], test=["test.json"]),
            max_length=8,
            batch_size=8,
            eval_batch_size=10,
        ),
        optim=OptimConfig(lr=3e-3, warmup=0.1),
        train=TrainConfig(**{"steps": 4, "accelerator": "cpu", **train}),
        output=output,
        name="run",
    )
