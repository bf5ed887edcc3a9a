"""What each of several processes gets of this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence


def share(place: int, jobs: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment of one of several processes: an equal share of the cores, unless it is set, and one GPU."""
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // jobs))
    device = {"CUDA_VISIBLE_DEVICES": devices[place % len(devices)]} if devices else {}
    return {"OMP_NUM_THREADS": threads} | device


def visible_devices() -> list[str]:
    """CUDA devices by the names in CUDA_VISIBLE_DEVICES, or their numbers."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
