"""Whether a connector learns: it is trained between the tiny tower and the tiny language model (`mllm.tiny`).

Asked are new images of the combinations of colour and shape it has seen (`score`), of combinations that were held out
(`held_out`), and the same questions with another sample's image (`shuffled`) and without one (`blank`), where nothing
can be known and chance is a quarter. `diversity` is 1 minus the mean cosine of the tokens that two positions of an
image get: a connector whose tokens are all the same can still answer these questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mllm import run
from mllm.adapter import load_adapter
from mllm.build import resolve
from mllm.data.module import MultimodalData
from mllm.evaluation import answer_all
from mllm.schema import MLLMConfig
from mllm.vlm import VLM
from vpeft.tasks.learning import normalise

CHANCE, LEAST, NEAR = 0.25, 0.85, 0.08
# What is tried, as settings by dotted key beside those of configs/mllm/tiny.yaml; sizes are those of the tiny models.
VARIANTS: dict[str, dict[str, Any]] = {
    "linear": {"connector": {"name": "linear"}},
    "mlp": {"connector": {"name": "mlp"}},
    "avg_pool": {"connector": {"name": "avg_pool", "tokens": 4}},
    "pixel_shuffle": {"connector": {"name": "pixel_shuffle", "factor": 2}},
    "resampler": {"connector": {"name": "resampler", "tokens": 8, "depth": 2, "heads": 4, "head_dim": 16, "ratio": 2}},
    "qformer": {
        "connector": {"name": "qformer", "tokens": 8, "dim": 64, "depth": 2, "heads": 4, "hidden": 128, "dropout": 0.0}
    },
    "c_abstractor": {"connector": {"name": "c_abstractor", "tokens": 4, "hidden": 64, "depth": 1}},
    "d_abstractor": {
        "connector": {
            "name": "d_abstractor",
            "tokens": 4,
            "dim": 64,
            "depth": 2,
            "heads": 4,
            "ffn": 128,
            "dropout": 0.0,
        }
    },
    "gated_xattn": {
        "connector": {
            "name": "gated_xattn",
            "every": 1,
            "latents": 8,
            "depth": 1,
            "heads": 4,
            "head_dim": 16,
            "ratio": 2,
        },
        "optim": {"gate_lr": 0.03},
    },
    "zero_init_prompt": {
        "connector": {"name": "zero_init_prompt", "prompts": 8, "layers": 3, "depth": 2, "dim": 64, "heads": 4},
        "optim": {"gate_lr": 0.03},
    },
    "visual_expert": {"connector": {"name": "visual_expert"}},
    "mlp+lora": {"connector": {"name": "mlp"}, "language_method": {"name": "lora", "r": 4, "alpha": 8.0}},
    "mlp+vision lora": {
        "connector": {"name": "mlp"},
        "method": {"name": "lora", "rank": 4},
        "cache_features": False,
    },
}


@dataclass(frozen=True)
class Found:
    """What a connector has learned.

    Args:
        parameters: Trained, in all.
        score: Of new images.
        held_out: Of combinations that were not trained.
        shuffled: With another sample's image.
        blank: Without an image.
        diversity: Of the tokens of an image; None where it takes fewer than two positions.
        seconds: Of the whole run.
    """

    parameters: int
    score: float
    held_out: float
    shuffled: float
    blank: float
    diversity: float | None
    seconds: float

    @property
    def passes(self) -> bool:
        """Whether it answers about images that it sees, and does not about others."""
        controls = (self.shuffled, self.blank)
        return self.score >= LEAST and all(abs(control - CHANCE) <= NEAR for control in controls)


def try_variant(config: MLLMConfig, variant: Mapping[str, Any]) -> Found:
    """Train one of VARIANTS from a configuration and ask about images.

    Args:
        config: Of a run on the task `rendered`, with controls.
        variant: Settings that replace those of the configuration.
    """
    config = varied(config, variant)
    row = run.train(config)
    model, _ = load_adapter(Path(row["folder"]) / "adapter.safetensors")
    data = run.assemble(config).data
    data.by_index = False
    held_out = answer_all(model, data, "held_out", dataclasses.replace(config.evaluation, controls=False))
    test = row["test"]
    trained = row["parameters"]["total"] - row["parameters"]["frozen"]
    seconds = row["time"]["wall_seconds"]
    return Found(
        trained, test["score"], held_out.score, test["shuffled"], test["blank"], diversity(model, data), seconds
    )


def varied(config: MLLMConfig, variant: Mapping[str, Any]) -> MLLMConfig:
    """A configuration with the settings of a variant; sections are merged, everything else is replaced."""
    changes = {
        key: dataclasses.replace(getattr(config, key), **value)
        if dataclasses.is_dataclass(getattr(config, key))
        else value
        for key, value in variant.items()
    }
    changed = dataclasses.replace(config, **changes)
    return dataclasses.replace(changed, **resolve(changed))


@torch.no_grad()
def diversity(model: VLM, data: MultimodalData, images: int = 16) -> float | None:
    """1 - the mean cosine between two tokens that the connector makes of an image."""
    if model.connector.tokens < 2:  # type: ignore[operator]
        return None
    pixels = data.pictures.take(torch.arange(images))
    tokens = F.normalize(model.connector(model.vision(normalise(pixels, model.mean, model.std))), dim=-1)
    cosines = tokens @ tokens.transpose(1, 2)
    count = cosines.shape[-1]
    return float(1 - (cosines.sum((1, 2)) - count).mean() / (count * (count - 1)))


def table(found: Mapping[str, Found]) -> str:
    """In Markdown, a row a variant."""
    lines = [
        "| connector | trained | score | held out | shuffled | blank | diversity | seconds | passes |",
        "|---|---:|---:|---:|---:|---:|---:|---:|:-:|",
    ]
    for name, one in found.items():
        different = "-" if one.diversity is None else f"{one.diversity:.2f}"
        lines.append(
            f"| {name} | {one.parameters:,} | {one.score:.3f} | {one.held_out:.3f} | {one.shuffled:.3f} | "
            f"{one.blank:.3f} | {different} | {one.seconds:.0f} | {'yes' if one.passes else 'no'} |"
        )
    return "\n".join(lines)
