"""The choice of settings for one method on one task: on val200, after the last epoch, with one seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member, ranked

if TYPE_CHECKING:
    from vpeft.suite.states import State

# Kinds of states of a tuning member that says what a choice needs.
SETTLED = ("done", "diverged")


class Incomplete(RuntimeError):
    """A final member's tuning members have not all been measured."""


def choose(folder: SuiteFolder, final: Member, members: Mapping[str, Member], states: Mapping[str, State]) -> Any:
    """What a final member is trained with, and what that was chosen from: its row's field `tuning`.

    The highest accuracy on val200 wins; of equals the one with the smaller learning rate, then the smaller weight
    decay, then the first of the grid. A tuning member whose loss was no number counts as the worst.

    Args:
        folder: Of the suite.
        final: A final member.
        members: All of the suite, by id.
        states: Of its tuning members, by id.

    Returns:
        {grid, seed, chosen, val_accuracy, members: [{member, point, val_accuracy}]}; None without a sweep.

    Raises:
        Incomplete: Tuning members are missing, stale or failed, or none has a finite loss.
    """
    if not final.grid:
        return None
    tried = [(members[key], states[key]) for key in final.needs]
    open_ones = [(one, state) for one, state in tried if state.kind not in SETTLED]
    if open_ones:
        one, state = open_ones[0]
        told = f"{state.kind}: {state.why}" if state.why else state.kind
        raise Incomplete(
            f"The settings of {final.method} on {final.task} are not chosen yet: {len(open_ones)} of {len(tried)} "
            f"tuning runs in {folder.path} are missing, the first of them {one.title} ({told}). "
            + ("Give --rerun stale." if state.kind == "stale" else "Run them first.")
        )
    table = [{"member": one.id, "point": one.point, "val_accuracy": _accuracy(state)} for one, state in tried]
    reached = [entry for entry in table if entry["val_accuracy"] is not None]
    if not reached:
        raise Incomplete(
            f"No setting of {final.method} on {final.task} can be chosen: the loss of all {len(tried)} tuning runs in "
            f"{folder.path} became no number. Sweep lower learning rates."
        )
    best = min(reached, key=_rank)
    return {
        "grid": final.grid,
        "seed": tried[0][0].seed,
        "chosen": best["point"],
        "val_accuracy": best["val_accuracy"],
        "members": table,
    }


def _accuracy(state: State) -> float | None:
    return None if state.row is None else state.row["val"]["accuracy"]


def _rank(entry: Mapping[str, Any]) -> tuple[float, ...]:
    return -entry["val_accuracy"], *ranked(entry["point"])
