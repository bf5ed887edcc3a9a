"""Test an adapter on the test split of data, prepared as the adapter says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    check_free(overrides, {"data": FREE})
    manifest = classifier.manifest
    # Adapters written before the manifest had `split` leave it at its default.
    names = {key: manifest[key] for key in ("task", "split", "resize", "interpolation") if key in manifest}
    config = classifying(resolve({"data": names}, source, overrides), source).data
    data = ClassificationData(config, classifier.tuned.backbone.image_size, manifest["interpolation"], seed=0)
    check_classes(source, classifier.classes, config.root or config.task, data.classes)
    return data


def check_free(overrides: Sequence[tuple[str, str]], free: Mapping[str, Sequence[str]]) -> None:
    """Refuse, as a ConfigError, what a test takes from the adapter; of sections, `free` lists what it does not."""
    for key, _ in overrides:
        section, _, name = key.partition(".")
        if name not in free.get(section, ()):
            section = section if section in free else next(iter(free))
            hint = did_you_mean(key.removeprefix(f"{section}."), free[section], f"{section}.")
            raise ConfigError(f"command line: --{key} cannot be changed for a test; {hint}")


def check_classes(source: str, known: Sequence[str], place: object, found: Sequence[str]) -> None:
    """Refuse, as a ValueError, data whose classes are not those that the adapter `source` knows."""
    if list(found) != list(known):
        raise ValueError(
            f"{source} knows {_listed(known)}, and the data {place} has {_listed(found)}; give --data.task and "
            "--data.root of data with the adapter's classes."
        )


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
