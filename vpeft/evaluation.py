"""Test an adapter on the test split of data, prepared as the adapter says."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.progress import track

from vpeft.config import classifying, resolve
from vpeft.data import ClassificationData
from vpeft.metrics import Evaluation, evaluate
from vpeft.nearest import did_you_mean
from vpeft.predict import Classifier
from vpeft.schema import ConfigError

# What may differ from the training: where images are and how they are read, not how they are prepared.
FREE = ("task", "root", "format", "eval_batch_size", "workers", "on_error")


def open_data(classifier: Classifier, overrides: Sequence[tuple[str, str]], source: str) -> ClassificationData:
    """The data an adapter is tested on: its own task, unless the overrides say another.

    Args:
        classifier: The adapter.
        overrides: `data.` keys among FREE, and their values.
        source: Name of the adapter in errors.

    Raises:
        ConfigError: A key that cannot be changed, or a wrong value.
        ValueError: The data is missing, or its classes are not the adapter's.
    """
    for key, _ in overrides:
        if key not in {f"data.{name}" for name in FREE}:
            hint = did_you_mean(key.removeprefix("data."), FREE, "data.")
            raise ConfigError(f"command line: --{key} cannot be changed for a test; {hint}")
    manifest = classifier.manifest
    # Adapters written before the manifest had `split` leave it at its default.
    names = {key: manifest[key] for key in ("task", "split", "resize", "interpolation") if key in manifest}
    config = classifying(resolve({"data": names}, source, overrides), source).data
    data = ClassificationData(config, classifier.tuned.backbone.image_size, manifest["interpolation"], seed=0)
    if data.classes != classifier.classes:
        raise ValueError(
            f"{source} knows {_listed(classifier.classes)}, and the data {config.root or config.task} has "
            f"{_listed(data.classes)}; give --data.task and --data.root of data with the adapter's classes."
        )
    return data


def test(classifier: Classifier, data: ClassificationData) -> Evaluation:
    """Measure the classifier on the test split, with a progress bar."""
    data.setup("test")
    seen = [
        (classifier(batch["image"]), batch["label"])
        for batch in track(data.test_dataloader(), description="test", transient=True)
    ]
    return evaluate(torch.cat([logits for logits, _ in seen]), torch.cat([labels for _, labels in seen]))


def _listed(classes: Sequence[str]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
