"""An epoch of the linear probe with cached features against one without, in whole runs of the package."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpeft.bench.noise import config, write_images
from vpeft.bench.process import fresh
from vpeft.bench.record import Record
from vpeft.bench.tables import markdown, ran
from vpeft.bench.turns import ratios, turns

WAYS = {"without": False, "with": True}


@dataclass(frozen=True)
class Epochs:
    """What is measured.

    Args:
        backbone: timm name; weights are random.
        image_size: Side in pixels; None is the backbone's own.
        images: Of an epoch.
        batch: Images a step.
        epochs: Of a run, the first of which is not counted: it fills the cache.
        threads: CPU threads of torch.
    """

    backbone: str = "vit_base_patch16_224"
    image_size: int | None = None
    images: int = 256
    batch: int = 32
    epochs: int = 3
    threads: int = 2


def measure(setting: Epochs, rounds: int, record: Record, say: Callable[[str], None]) -> None:
    """Runs with and without in turns, each in a fresh process.

    Raises:
        ValueError: Fewer than two epochs, or fewer images than a batch.
    """
    if setting.epochs < 2 or setting.images < setting.batch:
        raise ValueError(
            f"epochs is {setting.epochs} and images {setting.images} in batches of {setting.batch}; two epochs of one "
            "batch are the least: the first fills the cache and is not counted."
        )
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    save = record.session("epochs", seconds)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_images(root / "images", setting.images)
        number = iter(range(10**6))

        def run(way: str) -> Callable[[], float]:
            return lambda: fresh(_epoch, setting, root, WAYS[way], next(number))

        for turn, found in enumerate(turns({way: run(way) for way in WAYS}, rounds), start=1):
            for way, value in found.items():
                seconds[way].append(value)
            save()
            say(f"round {turn} of {rounds}: an epoch takes {found['without']:.2f} s, cached {found['with']:.3f} s")


def _epoch(setting: Epochs, root: Path, cached: bool, number: int) -> float:
    """Seconds of an epoch from the second on, by the run's own clock."""
    import torch

    from vpeft.run import train

    torch.set_num_threads(setting.threads)
    made = config(
        root / "images",
        root,
        f"run{number}",
        setting.batch,
        setting.epochs,
        method={"name": "linear"},
        backbone=setting.backbone,
        pretrained="none",
        image_size=setting.image_size,
        cache_features=cached,
    )
    row: Any = train(made)
    return row["time"]["step_seconds"] * (setting.images // setting.batch)


def parts(data: Mapping[str, Any]) -> dict[str, str]:
    """The table of a file of epochs."""
    setting, rows = data["setting"], []
    for session in data.get("epochs", []):
        without, with_ = session["seconds"]["without"], session["seconds"]["with"]
        times = [statistics.median(values) for values in (without, with_)]
        rows.append([f"{len(with_)}", f"{times[0]:.2f}", f"{times[1]:.3f}", f"{ratios(without, with_):.0f}"])
    size = f" at {setting['image_size']} px" if setting["image_size"] else ""
    about = (
        f"Linear probe on {setting['backbone']}{size}, random weights, {setting['images']} images an epoch in batches "
        f"of {setting['batch']}, {setting['threads']} threads; whole runs, epochs from the second on."
    )
    columns = ["rounds", "epoch, s", "cached, s", "times faster"]
    return {
        "about": "\n".join(dict.fromkeys([about, *map(ran, data["runs"])])),
        "epochs": markdown(columns, rows) if rows else "",
    }
