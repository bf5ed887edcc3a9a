"""The evaluation card: how the answers of a test were asked for, generated and scored, so that rows can be compared.

version     of the card's format
prompt      template, system text, and the first prompt as the model saw it, `<image>` for an image
decoding    greedy or beam search, longest answer, ids that end one
scoring     rule, its version, and what it says
samples     task and part, how many of how many, how they were chosen, how many were lost with their images meanwhile
controls    what the controls showed instead of the images, where there are any
weights     sha256 of the vision tower, of the language model, and of what was trained
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from mllm.data.batches import Writing
from mllm.data.module import MultimodalData
from mllm.data.shelf import Shelf
from mllm.sample import MARKER, Sample
from mllm.schema import EvaluationConfig
from mllm.scoring import SCORERS
from mllm.vlm import VLM
from vpeft.backbones.weights import content_hash

VERSION = 2
ALL, BY_HASH = "all", "first by sha256 of '{task}-{part}/' and the sample's id"
CONTROLS = {
    "shuffled": "each question with the images of another sample, the next in the order of hashes that shows others",
    "blank": "each image in the mean colour that the tower subtracts",
}


def card(
    model: VLM, data: MultimodalData, part: str, settings: EvaluationConfig, scored: Shelf, lost: int = 0
) -> dict[str, Any]:
    """The card of an evaluation, as plain JSON.

    Args:
        model: That answered; its weights are hashed.
        data: Its samples.
        part: Of them.
        settings: Decoding and scoring.
        scored: The samples whose answers were scored.
        lost: How many more were chosen, whose images were lost before they could be shown.
    """
    scorer, total = SCORERS[settings.score], len(data.samples(part))
    how = ALL if len(scored) + lost == total else BY_HASH.format(task=data.config.task, part=part)
    return {
        "version": VERSION,
        "prompt": {
            "template": data.config.template,
            "system": data.config.system,
            "example": rendered(scored[0], data.writing),
            "tokens_per_image": data.writing.tokens_per_image,
        },
        "decoding": {
            "method": "greedy" if settings.beams == 1 else "beam search",
            "beams": settings.beams,
            "max_new_tokens": settings.max_new_tokens,
            "ends": sorted({*model.about.ends, data.writing.template.stop(data.writing.tokenizer)}),
        },
        "scoring": {"rule": settings.score, "version": scorer.version, "says": scorer.says, "best": scorer.best},
        "samples": {
            "task": data.config.task,
            "part": part,
            "count": len(scored),
            "of": total,
            "chosen": how,
            "lost": lost,
        },
        "controls": CONTROLS if settings.controls else None,
        "weights": {
            "vision": model.vision.backbone.weights.sha256,
            "language": model.about.weights.sha256,
            "trained": content_hash({name: _whole(tensor) for name, tensor in model.delta().items()}),
        },
    }


def rendered(sample: Sample, writing: Writing) -> str:
    """The prompt of a sample as text: special tokens as they are called, `<image>` for an image."""
    turns = sample.turns[:-1] if sample.turns[-1].role == "assistant" else sample.turns
    tokenizer = writing.tokenizer
    parts = writing.template.segments(replace(sample, turns=turns).turns, tokenizer)
    return "".join(
        MARKER if part.image else part.text if part.token is None else str(tokenizer.convert_ids_to_tokens(part.token))
        for part in parts
    )


def _whole(tensor: Tensor) -> Tensor:
    """All of a tensor that FSDP has shared out."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]
