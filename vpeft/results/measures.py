"""Tables beside accuracy: ranks, calibration, time and memory."""

from __future__ import annotations

from statistics import fmean

from vpeft.results import statistics
from vpeft.results.entry import Block, Entry
from vpeft.results.tables import SHORT, Table, value


def rank_table(block: Block) -> Table:
    """Mean rank over tasks and how often a method is best, with Friedman's test or why there is none."""
    scores = block.scores()
    ranks = statistics.mean_ranks(scores)
    best = [sum(abs(line[number] - max(line)) < 1e-9 for line in scores) for number in range(len(block.entries))]
    order = sorted(range(len(ranks)), key=lambda number: ranks[number])
    without = f" Without methods that lack tasks: {', '.join(block.left_out)}." if block.left_out else ""
    return Table(
        f"Mean rank over {len(block.tasks)} tasks, 1 is the best",
        ["method", "mean rank", "best on", "mean accuracy"],
        parts=[
            [
                [
                    block.entries[number].label,
                    f"{ranks[number]:.2f}",
                    f"{best[number]} of {len(block.tasks)}",
                    f"{fmean(line[number] for line in scores):.2f}",
                ]
                for number in order
            ]
        ],
        note=f"{ranked(block)}{without}",
    )


def ranked(block: Block) -> str:
    """What Friedman's test says about a block, or why it is not made."""
    methods, tasks = len(block.entries), len(block.tasks)
    told = "Ranks are of the mean over seeds, equal ones share theirs; only methods with all of these tasks take part."
    if methods < statistics.FEWEST_METHODS or tasks < statistics.FEWEST_TASKS:
        return (
            f"{told} No test is made: it takes {statistics.FEWEST_METHODS} methods and {statistics.FEWEST_TASKS} tasks "
            f"or more, and here are {methods} and {tasks}."
        )
    found = statistics.friedman(block.scores())
    p = "p < 0.0001" if found.p < 1e-4 else f"p = {found.p:.4f}"
    f = "F is infinite" if found.f == float("inf") else f"F = {found.f:.2f}"
    says = [
        f"{told} Friedman's test over {methods} methods and {tasks} tasks: chi-squared = {found.chi2:.2f}, "
        f"Iman and Davenport's {f} with {methods - 1} and {(methods - 1) * (tasks - 1)} degrees of freedom, {p}."
    ]
    if found.differs:
        difference = statistics.critical_difference(methods, tasks)
        says.append(
            f"Two methods differ at the 5 % level if their mean ranks differ by {difference:.2f} or more (Nemenyi)."
        )
    else:
        says.append("No difference is found at the 5 % level, so no two of these methods can be told apart.")
    if found.rough:
        says.append(
            f"The approximation is good above {statistics.ENOUGH_METHODS} methods and {statistics.ENOUGH_TASKS} tasks; "
            "here it is rough."
        )
    return " ".join(says)


def calibration_table(entries: list[Entry], tasks: list[str]) -> Table | None:
    """Expected calibration error by task; None where no row has one."""
    if not any(entry.calibration for entry in entries):
        return None
    lines = []
    for entry in entries:
        found = entry.calibration
        means = [fmean(found[task]) for task in tasks if task in found]
        mean = f"{fmean(means):.2f}" if len(means) == len(tasks) else f"{len(means)} of {len(tasks)}"
        cells = (value(fmean(found[task]), found[task]) if task in found else "-" for task in tasks)
        lines.append([entry.label, mean, *cells])
    return Table(
        "Expected calibration error in % by task, lower is better",
        ["method", "mean", *(SHORT.get(task, task) for task in tasks)],
        parts=[lines],
        note="Mean distance of confidence and accuracy over 15 equal bins of the softmax's confidence, weighted by the "
        "test images in each, without temperature scaling. Few test images raise it: bins with few of them are off by "
        "chance. The rows hold the mean and not the bins, so there is no reliability diagram. ± as for accuracy.",
    )


def cost_table(entries: list[Entry]) -> Table | None:
    """Step time and memory by what they were measured on; None where no row has them."""
    costs = {entry.label: entry.costs() for entry in entries}
    machines = sorted({machine for found in costs.values() for machine in found})
    if not machines:
        return None
    parts = [
        [
            [
                label,
                str(machine),
                str(cost.runs),
                _in(cost.step_seconds, 1e-3, 1),
                _in(cost.images_per_second, 1, 1),
                _in(cost.peak_bytes, 2**20, 0),
                _in(cost.wall_seconds, 60, 1),
            ]
            for label, found in costs.items()
            if (cost := found.get(machine))
        ]
        for machine in machines
    ]
    of = sorted({machine.memory for machine in machines if machine.memory})
    return Table(
        "Time and memory, medians over runs",
        ["method", "measured on", "runs", "step (ms)", "images/s", "peak memory (MiB)", "run (min)"],
        words=("measured on",),
        parts=parts,
        note="Only figures of one device, number of threads, batch size and precision compare, and only as far as the "
        "machine was as busy; a row does not tell one processor model from another. Packed runs have the time and "
        "memory of all that were packed together." + (f" Memory is the peak of {' or of '.join(of)}." if of else ""),
    )


def _in(amount: float | None, unit: float, digits: int) -> str:
    return "-" if amount is None else f"{amount / unit:,.{digits}f}"
