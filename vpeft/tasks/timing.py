"""How long steps take, how much of that is waiting for data, and how much memory a run needs."""

from __future__ import annotations

import ctypes
import gc
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.profilers import Profiler

FETCH = "train_dataloader_next"
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Waiting(Profiler):
    """Seconds since `reset` in which training stood still for its next batch.

    Lightning announces every fetch to its profiler, so nothing but the fetch is counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since: float | None = None

    def reset(self) -> None:
        """Start an epoch; the time until its first batch is there (workers starting up) is waiting."""
        self.seconds, self._since = 0.0, time.perf_counter()

    def start(self, action_name: str) -> None:
        if action_name.endswith(FETCH) and self._since is None:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(FETCH) and self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class Timing(L.Callback):
    """Measures the run, and its training epochs without evaluation; what it knows survives a resumed run.

    An epoch that was interrupted and resumed is left out too: its first part was another process.

    Args:
        waiting: The profiler given to the Trainer.
    """

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.epochs: list[dict[str, float]] = []
        self._before, self._since = 0.0, time.perf_counter()
        self._started: float | None = None
        self._evaluating = 0.0
        self._images = self._batches = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started, self._evaluating = time.perf_counter(), 0.0
        self._images = self._batches = 0
        self.waiting.reset()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch["index"]) * trainer.world_size
        self._batches += 1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluating -= time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._evaluating += time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._started is None:
            return
        seconds = time.perf_counter() - self._started - self._evaluating
        epoch = {
            "seconds": seconds,
            "steps": float(self._batches),
            "images": float(self._images),
            "waiting": self.waiting.seconds,
        }
        self.epochs.append(epoch)
        self._started = None
        shown = {"images_per_second": self._images / seconds, "data_wait_percent": 100 * epoch["waiting"] / seconds}
        shown["peak_memory_gib"] = peak_memory(pl_module.device) / 2**30
        pl_module.log_dict({f"speed/{name}": value for name, value in shown.items()})

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "elapsed": self.elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs, self._before = state_dict["epochs"], state_dict["elapsed"]

    def elapsed(self) -> float:
        """Seconds since this was made, and those of the run before it was resumed."""
        return self._before + time.perf_counter() - self._since

    def summary(self) -> dict[str, float | None]:
        """Median seconds a batch, images a second, and the share of time spent waiting for data.

        The first epoch (start-up, decoding into memory) is left out where there is a second one, and
        the share is None where there is none.
        """
        steady = self.epochs[1:]
        epochs = steady or self.epochs
        if not epochs:
            return {"step_seconds": None, "images_per_second": None, "data_wait_share": None}
        return {
            "step_seconds": statistics.median(epoch["seconds"] / epoch["steps"] for epoch in epochs),
            "images_per_second": statistics.median(epoch["images"] / epoch["seconds"] for epoch in epochs),
            "data_wait_share": _share(steady) if steady else None,
        }


def _share(epochs: list[dict[str, float]]) -> float:
    return sum(epoch["waiting"] for epoch in epochs) / sum(epoch["seconds"] for epoch in epochs)


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes held so far: by tensors on a GPU; by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if _STATUS.exists():  # counts from `forget_peak` on, and not from the process that started this one
        (line,) = (line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def forget_peak() -> None:
    """Give back what earlier runs of this process held, and measure the peak anew; on Linux and GPUs."""
    gc.collect()  # a finished run is a circle of references
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
    if _CLEAR.exists():
        _CLEAR.write_text("5")
