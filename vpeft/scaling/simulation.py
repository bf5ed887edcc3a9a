"""Members of a suite that share one device and some cores.

A member decodes its images, trains, decodes its test images once more where they do not fit into memory, and is tested.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vpeft.data.cache import memory_limit
from vpeft.data.images import as_tensor, decode_bytes, resized
from vpeft.data.tables import VTAB

EPOCHS, BATCH = 100, 64
# Usual size (width, height) of the images in each data set of VTAB-1k; where sizes differ, a typical one.
SIZES: dict[str, tuple[int, int]] = {
    "caltech101": (300, 245),
    "cifar100": (32, 32),
    "dtd": (500, 450),
    "oxford_flowers102": (600, 500),
    "oxford_iiit_pet": (430, 390),
    "sun397": (400, 300),
    "svhn": (32, 32),
    "patch_camelyon": (96, 96),
    "eurosat": (64, 64),
    "resisc45": (256, 256),
    "diabetic_retinopathy": (600, 600),
    "clevr_count": (480, 320),
    "clevr_dist": (480, 320),
    "dmlab": (480, 360),
    "kitti": (1242, 375),
    "dsprites_loc": (64, 64),
    "dsprites_ori": (64, 64),
    "smallnorb_azi": (96, 96),
    "smallnorb_ele": (96, 96),
}


def decode_seconds(size: tuple[int, int], target: int = 224, repeats: int = 12) -> float:
    """Seconds that one core needs to decode a PNG of this size (smooth noise) and resize it; the median."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (max(2, size[1] // 8), max(2, size[0] // 8), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = (smooth + generator.integers(-6, 7, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "PNG")
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        as_tensor(resized(decode_bytes(file.getvalue(), "noise"), (target, target), "squash", "bilinear"))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


@dataclass(frozen=True)
class Phase:
    """Part of a member: `cores` seconds of one core, spread over those that are free, or `device` seconds alone."""

    resource: str
    seconds: float


def member(task: str, work: Mapping[str, float], decode: float, pack: int = 1) -> list[Phase]:
    """The phases of a run on one task.

    Args:
        task: Of VTAB-1k.
        work: Seconds of a `step` of training with `pack` members in it, of an `image` in evaluation, and the `host`
            seconds that a run needs besides (loading, logging, saving).
        decode: Seconds of one core for one image.
        pack: Members that train in one step; the device's time is shared between them.
    """
    images = 1000 + VTAB[task].test
    kept = images * 3 * 224 * 224 <= memory_limit()
    return [
        Phase("cores", work["host"] + images * decode),
        Phase("device", EPOCHS * (1000 // BATCH) * work["step"] / pack),
        Phase("cores", 0.0 if kept else VTAB[task].test * decode),
        Phase("device", VTAB[task].test * work["image"]),
    ]


def simulate(members: Sequence[Sequence[Phase]], jobs: int, cores: int) -> tuple[float, float]:
    """Let members run, `jobs` at a time, on one device and some cores.

    The device works for those that want it in turns, cores are shared evenly.

    Returns:
        Seconds until all are done, and the part of them in which the device is busy.
    """
    waiting = [list(phases) for phases in members]
    running: list[Iterator[Phase]] = []
    left: dict[int, tuple[str, float]] = {}
    now = busy = 0.0
    while waiting or left:
        while waiting and len(left) < jobs:
            running.append(iter(waiting.pop(0)))
            left[len(running) - 1] = ("", 0.0)
        for index, (_, seconds) in list(left.items()):
            while seconds <= 1e-9:
                phase = next(running[index], None)
                if phase is None:
                    del left[index]
                    break
                seconds = phase.seconds
                left[index] = (phase.resource, seconds)
        if not left:
            continue
        sharing = {name: sum(resource == name for resource, _ in left.values()) for name in ("device", "cores")}
        speed = {"device": 1 / max(1, sharing["device"]), "cores": cores / max(1, sharing["cores"])}
        step = min(seconds / speed[resource] for resource, seconds in left.values())
        now += step
        busy += step if sharing["device"] else 0.0
        left = {index: (resource, seconds - step * speed[resource]) for index, (resource, seconds) in left.items()}
    return now, busy / now if now else 0.0
