"""Which figures a setting has, and the SVG around them."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from importlib.resources import files

from vpeft.results import statistics
from vpeft.results.averages import TASKS, VTAB_GROUPS
from vpeft.results.diagram import diagram
from vpeft.results.entry import Block, Cost, Entry, Groups, Machine
from vpeft.results.intervals import intervals
from vpeft.results.published import Published
from vpeft.results.scatter import HEIGHT, WIDTH, Axis, Point, front, scatter


@dataclass(frozen=True)
class Figure:
    """A drawing.

    Args:
        name: In file names and ids, unique in its section.
        title: What it shows.
        caption: What a reader has to know, in sentences.
        description: The same in words, for who does not see it.
        size: Width and height.
        body: Inside of the SVG.
    """

    name: str
    title: str
    caption: str
    description: str
    size: tuple[int, int]
    body: str

    def svg(self, prefix: str = "") -> str:
        """An element for a page that has the styles; `prefix` makes its ids unique there."""
        mark = f"{prefix}{self.name}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.size[0]} {self.size[1]}" role="img" '
            f'aria-labelledby="{mark}-title {mark}-desc">\n<title id="{mark}-title">{escape(self.title)}</title>\n'
            f'<desc id="{mark}-desc">{escape(self.description)}</desc>\n{self.body}\n</svg>'
        )

    def file(self) -> str:
        """A file of its own, with its styles and a background."""
        ground = f'<rect class="ground" width="{self.size[0]}" height="{self.size[1]}"/>'
        head, end, rest = self.svg().partition("</desc>\n")
        return f"{head}{end}<style>\n{STYLE}</style>\n{ground}\n{rest}\n"


STYLE = files("vpeft.results").joinpath("figure.css").read_text(encoding="utf-8")


def draw(block: Block, published: list[Published]) -> list[Figure]:
    """The figures of a setting: what they need decides which there are.

    Args:
        block: Methods, and the tasks that all of them have.
        published: Rows that may be compared.
    """
    if len(block.entries) < 2 or not block.tasks:
        return []
    means = {id(entry): entry.averages(_groups(block)).group_mean for entry in block.entries}
    accuracy = {key: value for key, value in means.items() if value is not None}
    return [
        _parameters(block, accuracy, published),
        *_costs(block, accuracy),
        *_means(block, accuracy),
        *_ranks(block),
    ]


def _groups(block: Block) -> Groups:
    """All of VTAB-1k by group, as most papers average it; other tasks together."""
    return VTAB_GROUPS if block.tasks == list(TASKS) else {"": block.tasks}


def _over(block: Block) -> str:
    if block.tasks == list(TASKS):
        return "mean of the 3 group means"
    return block.tasks[0] if len(block.tasks) == 1 else f"mean of {len(block.tasks)} tasks"


def _parameters(block: Block, accuracy: dict[int, float], published: list[Published]) -> Figure:
    points = [Point(1e6 * entry.params_m, accuracy[id(entry)], entry.label) for entry in block.entries]
    if block.tasks == list(TASKS):
        points += [
            Point(1e6 * row.params_m, row.averages.group_mean, row.method, "published")
            for row in published
            if row.params_m is not None and row.averages.group_mean is not None
        ]
    axis = Axis("trained parameters without the head (logarithmic)", _count, logarithmic=True)
    return _scatter("parameters", "Accuracy against trained parameters", block, points, axis)


def _costs(block: Block, accuracy: dict[int, float]) -> list[Figure]:
    """Accuracy against step time and memory, a pair for every machine that measured two methods or more."""
    on: dict[Machine, list[tuple[Entry, Cost]]] = {}
    for entry in block.entries:
        for machine, cost in entry.costs().items():
            on.setdefault(machine, []).append((entry, cost))
    figures = []
    for number, machine in enumerate(sorted(on), start=1):
        times = [
            Point(1e3 * cost.step_seconds, accuracy[id(entry)], entry.label)
            for entry, cost in on[machine]
            if cost.step_seconds is not None
        ]
        peaks = [
            Point(cost.peak_bytes / 2**20, accuracy[id(entry)], entry.label)
            for entry, cost in on[machine]
            if cost.peak_bytes is not None
        ]
        words = f"Measured on {machine}; methods measured elsewhere are not in this figure."
        where = f": {machine}" if len(on) > 1 else ""
        for kind, points, title, axis in (
            ("time", times, "Accuracy against step time", Axis("step time (ms, median)", _plain)),
            ("memory", peaks, "Accuracy against peak memory", Axis(_memory(machine), _plain)),
        ):
            if len(points) > 1:
                figures.append(_scatter(f"{kind}-{number}", f"{title}{where}", block, points, axis, words))
    return figures


def _memory(machine: Machine) -> str:
    return f"peak memory{f' of {machine.memory}' if machine.memory else ''} (MiB, median)"


def _scatter(name: str, title: str, block: Block, points: list[Point], axis: Axis, words: str = "") -> Figure:
    body, hidden = scatter(points, axis, f"accuracy (%), {_over(block)}")
    best = front(points)
    caption = [
        words,
        "The line is the Pareto front: no method is as cheap as one on it and better, or as good and cheaper.",
        "Published rows that may be compared stand beside it and do not take part."
        if any(point.kind == "published" for point in points)
        else "",
        f"Without methods that lack tasks: {', '.join(block.left_out)}." if block.left_out else "",
        f"{hidden} of {len(points)} names have no room; the tables have them all." if hidden else "",
    ]
    told = "; ".join(f"{point.name} {point.accuracy:.2f} % at {axis.written(point.cost)}" for point in points)
    return Figure(
        name,
        title,
        " ".join(filter(None, caption)),
        f"Horizontal: {axis.title}. On the Pareto front: {', '.join(points[at].name for at in best)}. All: {told}.",
        (WIDTH, HEIGHT),
        body,
    )


def _means(block: Block, accuracy: dict[int, float]) -> list[Figure]:
    """The averages with their intervals, where there are any."""
    found = []
    for entry in block.entries:
        seeds = [value for one in entry.by_seed(_groups(block)) if (value := one.group_mean) is not None]
        found.append((entry.label, accuracy[id(entry)], statistics.interval(seeds)))
    if all(half is None for _, _, half in found):
        return []
    found.sort(key=lambda one: -one[1])
    body, height = intervals(found, f"accuracy (%), {_over(block)}")
    told = "; ".join(f"{name} {mean:.2f}{f' ± {half:.2f}' if half is not None else ''}" for name, mean, half in found)
    words = (
        "Mean and 95 % confidence interval over seeds (Student's t), averaged over tasks seed by seed. It says how far "
        "another draw of seeds would move the mean, and nothing about other tasks or images."
    )
    return [Figure("means", "Accuracy with its interval", words, f"Best first: {told}.", (WIDTH, height), body)]


def _ranks(block: Block) -> list[Figure]:
    methods, tasks = len(block.entries), len(block.tasks)
    if methods < statistics.FEWEST_METHODS or tasks < statistics.FEWEST_TASKS:
        return []
    scores = block.scores()
    ranks = statistics.mean_ranks(scores)
    order = sorted(range(methods), key=lambda number: ranks[number])
    names, rising = [block.entries[number].label for number in order], [ranks[number] for number in order]
    if statistics.friedman(scores).differs:
        difference = statistics.critical_difference(methods, tasks)
        groups, bars = statistics.alike(rising, difference), "A bar joins methods that differ by less than that."
    else:
        difference, groups, bars = None, [(0, methods - 1)], "No difference was found: one bar joins them all."
    body, height = diagram(names, rising, groups, difference)
    told = "; ".join(f"{name} {rank:.2f}" for name, rank in zip(names, rising, strict=True))
    joined = "; ".join(", ".join(names[low : high + 1]) for low, high in groups)
    return [
        Figure(
            "ranks",
            "Critical-difference diagram",
            f"Mean ranks of {methods} methods over {tasks} tasks, 1 is the best; Nemenyi's critical difference at the "
            f"5 % level. {bars} The test and its conditions stand with the table of ranks.",
            f"Mean ranks, best first: {told}. Not told apart: {joined or 'none'}.",
            (WIDTH, height),
            body,
        )
    ]


def _count(amount: float) -> str:
    """1,500 as 1.5K."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if amount >= size:
            return f"{amount / size:.3g}{letter}"
    return f"{amount:.0f}"


def _plain(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
