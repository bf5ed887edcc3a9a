"""The two averages that are both called "the mean of VTAB": of three group means, and of nineteen tasks.

Other sets of tasks have the same two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Averages over tasks; None where a task of them is missing.

    Args:
        groups: Mean of each group.
        group_mean: Mean of the group means; of VTAB-1k three.
        task_mean: Mean of all tasks; of VTAB-1k nineteen.
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


VTAB_GROUPS = {group: tasks_of(group) for group in GROUPS}


def averages(per_task: Mapping[str, float], groups: Mapping[str, Sequence[str]] = VTAB_GROUPS) -> Averages:
    """Averages of one number a task; incomplete sets have none.

    Args:
        per_task: The numbers.
        groups: Which tasks there are, by group; those of VTAB-1k by default.
    """

    def mean(tasks: Sequence[str]) -> float | None:
        return fmean(per_task[task] for task in tasks) if tasks and all(task in per_task for task in tasks) else None

    means = {group: mean(tasks) for group, tasks in groups.items()}
    whole = [value for value in means.values() if value is not None]
    group_mean = fmean(whole) if whole and len(whole) == len(means) else None
    return Averages(means, group_mean, mean([task for tasks in groups.values() for task in tasks]))
