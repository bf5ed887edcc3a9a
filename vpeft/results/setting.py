"""What decides a run's numbers: the setting it shares with others, its own options, and a hash of both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpeft.data.tables import VTAB
from vpeft.results.published import Facts

BACKBONES = {
    "vit_base_patch16_224.orig_in21k": "orig",
    "vit_base_patch16_224.augreg_in21k": "augreg",
    "vit_base_patch16_224_in21k": "augreg",  # timm's old name means augreg today
}
_NORMALIZATIONS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "inception": ([0.5] * 3, [0.5] * 3),
    "none": ([0.0] * 3, [1.0] * 3),
}
# Of `data`, `optim` and `train`: what may differ between runs that are the same otherwise.
_FREE = ("workers", "eval_batch_size", "packages", "skipped", "licence", "statement", "warning")
_FREE += ("accelerator", "strategy", "compile", "frozen", "val_every", "test", "resume")


@dataclass(frozen=True, order=True)
class Setting:
    """What the runs of one table have in common.

    Args:
        protocol: The one they were given, or "".
        suite: `VTAB-1k`, `embedded`, or `own` for folders of one's own.
        backbone: Its name, and its size of images.
        weights: Where its weights come from, and which they are.
        normalization: imagenet, inception, none, or mean and deviation.
        resize: squash or crop.
        interpolation: The filter.
        files: Layout of the data.
        lossy: Whether its images are JPEG where they were not.
        split: What was trained on.
        augment: Random changes of training images.
        selection: last or best_val.
    """

    protocol: str
    suite: str
    backbone: str
    weights: str
    normalization: str
    resize: str
    interpolation: str
    files: str
    lossy: bool
    split: str
    augment: str
    selection: str

    @property
    def facts(self) -> Facts:
        """The setting in the words of published rows."""
        name, _, size = self.backbone.rpartition(" at ")
        tag = BACKBONES.get(name) if size == "224 x 224" and not self.weights.startswith("random") else None
        return Facts(
            tag or f"{self.backbone}, {self.weights}",
            self.normalization,
            self.selection,
            self.lossy,
            self.resize,
            self.interpolation,
            self.split,
            self.augment,
        )

    def __str__(self) -> str:
        return (
            f"{self.backbone} ({self.weights}), normalisation {self.normalization}, {self.resize}, "
            f"{self.interpolation}, {self.files}, trained on {self.split}, augment {self.augment}, "
            f"{'last epoch' if self.selection == 'last' else f'epoch by {self.selection}'}"
        )


def fingerprint(row: Mapping[str, Any]) -> str:
    """Hash of everything that decides a run's numbers: task, seed and settings, not where and when it ran."""
    # `variant` has the options of a method, and a method without options is in it no more than another one.
    return digest([_setting_key(row), row["task"], row["seed"], row["method"], variant(row)])


def _setting_key(row: Mapping[str, Any]) -> list[Any]:
    return [str(value) for value in vars(setting_of(row)).values()]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def setting_of(row: Mapping[str, Any]) -> Setting:
    """What a row has in common with others it may stand beside."""
    backbone, prepared, data = row["backbone"], row["preprocessing"], row["data"]
    weights = backbone["weights"]
    kind = weights["source"]
    which = "random weights" if kind == "random" else f"{kind} weights {weights['sha256'][:12]}"
    suite = "embedded" if data["format"] == "embedded" else "VTAB-1k" if row["task"] in VTAB else "own"
    return Setting(
        protocol=(row.get("protocol") or {"name": ""})["name"],
        suite=suite,
        backbone=f"{backbone['name']} at {' x '.join(map(str, backbone['image_size']))}",
        weights=which,
        normalization=_normalization(prepared["normalization"]),
        resize=prepared["resize"],
        interpolation=prepared["interpolation"],
        files=data["format"],
        lossy=bool(data["lossy"]),
        split=data["split"],
        augment=prepared["augment"],
        selection=row["selection"]["rule"],
    )


def _normalization(given: Mapping[str, Any]) -> str:
    for name, (mean, std) in _NORMALIZATIONS.items():
        if list(given["mean"]) == mean and list(given["std"]) == std:
            return name
    return f"mean {given['mean']} and deviation {given['std']}"


def variant(row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a row that its `Setting` does not have, by dotted key: method, head, optimiser, training."""
    found: dict[str, Any] = {"drop_path": row["backbone"]["drop_path"]}
    for spec in row["method"]:
        found |= {f"{spec['name']}.{key}": value for key, value in spec.items() if key != "name"}
    sections = {"head": row["head"], "optim": row["optim"], "train": row["train"]}
    sections["data"] = {key: row["data"].get(key) for key in ("batch_size", "drop_last")}
    for section, settings in sections.items():
        found |= {f"{section}.{key}": value for key, value in settings.items() if key not in _FREE}
    return found
