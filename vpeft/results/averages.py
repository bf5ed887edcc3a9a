"""The two averages that are both called "the mean of VTAB": of three group means, and of nineteen tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from vpeft.data.tables import VTAB

GROUPS = ("natural", "specialized", "structured")
# In the order in which the papers print them.
TASKS = (
    *("cifar100", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    *("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    *("clevr_count", "clevr_dist", "dmlab", "kitti"),
    *("dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"),
)


@dataclass(frozen=True)
class Averages:
    """Averages over tasks of VTAB-1k; None where a task of them is missing.

    Args:
        groups: Mean of each group.
        group_mean: Mean of the three group means.
        task_mean: Mean of the nineteen tasks.
    """

    groups: dict[str, float | None]
    group_mean: float | None
    task_mean: float | None

    @property
    def stated(self) -> bool:
        """Whether there is any of them."""
        return any(value is not None for value in (*self.groups.values(), self.group_mean, self.task_mean))


def tasks_of(group: str) -> list[str]:
    """The tasks of a group, in the papers' order."""
    return [task for task in TASKS if VTAB[task].group == group]


def averages(per_task: Mapping[str, float]) -> Averages:
    """Averages of one number a task; incomplete sets have none."""

    def mean(tasks: list[str]) -> float | None:
        return fmean(per_task[task] for task in tasks) if all(task in per_task for task in tasks) else None

    groups = {group: mean(tasks_of(group)) for group in GROUPS}
    whole = [value for value in groups.values() if value is not None]
    return Averages(groups, fmean(whole) if len(whole) == len(GROUPS) else None, mean(list(TASKS)))
