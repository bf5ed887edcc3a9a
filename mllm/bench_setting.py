"""What `mllm.bench` measures on: its sizes, conversations about drawings, and the weights that all cases begin with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mllm import connectors
from mllm import language as languages
from mllm.sample import Held, Sample
from mllm.shapes import VisionShape

R, ALPHA, LR = 8, 16.0, 1e-4
COMPARED = 2  # samples


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Args:
        language: As `mllm.language.load` has it.
        dim: Width of the tower, random weights of CLIP's kind.
        depth: Its blocks; the last but one is read.
        image_size: Side in pixels, in patches of 14.
        samples: Conversations of a round.
        questions: Most questions about an image, which LLaVA-1.5 puts into one conversation; they have from 1 on.
        batch: Conversations a step, where they are not packed.
        capacity: Tokens of a packed row.
        rows: Packed rows a step.
        rounds: Turns of each after one that is not counted.
        threads: CPU threads of torch.
    """

    language: str = "smollm2_135m_instruct"
    dim: int = 384
    depth: int = 12
    image_size: int = 112
    samples: int = 16
    questions: int = 6
    batch: int = 4
    capacity: int = 256
    rows: int = 2
    rounds: int = 3
    threads: int = 2


def conversations(samples: Iterable[Sample], setting: Setting) -> list[dict[str, Any]]:
    """Conversations in LLaVA's form, about so many different images, of 1 to `questions` questions each."""
    by_image: dict[Held, list[Sample]] = {}
    for sample in samples:
        (image,) = sample.images
        by_image.setdefault(image, []).append(sample)  # type: ignore[arg-type]
    found = []
    for number, (image, asked) in enumerate(list(by_image.items())[: setting.samples]):
        turns = [turn for sample in asked[: 1 + number % setting.questions] for turn in sample.turns]
        texts = [turns[0].text, *(turn.text.replace("<image>\n", "") for turn in turns[1:])]
        said = [
            {"from": "human" if turn.role == "user" else "gpt", "value": text}
            for turn, text in zip(turns, texts, strict=True)
        ]
        found.append({"id": str(number), "image": f"{number}.png", "bytes": image.data, "conversations": said})
    return found


def prepare(folder: Path, setting: Setting, samples: Iterable[Sample]) -> None:
    """Write what all cases begin with: conversations, images, a tower and an MLP."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    records = conversations(samples, setting)
    for record in records:
        (folder / record["image"]).write_bytes(record.pop("bytes"))
    (folder / "talks.json").write_text(json.dumps(records))
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=setting.dim,
        intermediate_size=4 * setting.dim,
        num_hidden_layers=setting.depth,
        num_attention_heads=setting.dim // 64,
        image_size=setting.image_size,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(folder / "vision")
    side = setting.image_size // 14
    shape = languages.load(setting.language).shape
    save_file(
        connectors.build({"name": "mlp"}, VisionShape(setting.dim, (side, side)), shape).state_dict(),
        folder / "connector.safetensors",
    )
