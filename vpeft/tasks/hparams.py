"""What TensorBoard's HParams page shows of a run: its settings and its final measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict, _sanitize_params
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams


def final_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a finished run, by tag."""
    metrics = {name: value for name, value in (row["test"] or {}).items() if isinstance(value, float)}
    metrics |= {f"val_{name}": value for name, value in (row["val"] or {}).items() if isinstance(value, float)}
    counts = row["parameters"]
    metrics["trained_parameters"] = float(counts["total"] - counts["frozen"])
    metrics["peak_memory_gib"] = row["memory"]["peak_bytes"] / 2**30
    if row["time"]["step_seconds"] is not None:
        metrics["step_seconds"] = row["time"]["step_seconds"]
    return {f"final/{name}": value for name, value in metrics.items()}


def session(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as the page knows them: flat, each a number or a text."""
    return _sanitize_params(_flatten_dict(dict(settings)))


def log_session(
    logger: TensorBoardLogger, settings: Mapping[str, Any], metrics: dict[str, float], step: int, alone: bool
) -> None:
    """Write a run as one session.

    Args:
        logger: Of the run.
        settings: By dotted key.
        metrics: By tag.
        step: Of the run.
        alone: Whether the run is an experiment of its own; TensorBoard shows one of those it finds, so the members of
            a suite must have none.
    """
    if alone:
        logger.log_hyperparams(dict(settings), metrics, step=step)
        return
    logger.log_metrics(metrics, step)
    _, start, end = hparams(session(settings), metrics)
    for summary in (start, end):
        logger.experiment._get_file_writer().add_summary(summary, step)
