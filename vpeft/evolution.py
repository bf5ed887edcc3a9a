"""Evolution of NOAH's architectures under a budget of parameters (Zhang et al., arXiv:2206.04673).

The recipe is that of ZhangYuanhan-AI/NOAH @ e9c55f3: a first population at random; then, generation after
generation, mutations and crossovers of the best architectures so far, filled up at random. A module stands in
the first blocks, down to a depth drawn for it.

Differs: a mutation also draws the widths of the blocks that stay, each with its own probability, as AutoFormer does
(the official one changes depths alone, so that architectures as deep as the backbone hardly change); the offspring of
the last generation counts (there it is measured and left out); between equal accuracies the smaller one wins.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

from vpeft.methods.noah import Architecture
from vpeft.search_settings import SearchConfig

TRIES = 10  # draws for each architecture that is wanted, as in the official code


@dataclass(frozen=True)
class Space:
    """The architectures there are.

    Args:
        widths: Choices for each module, ascending, in the order of Architecture's fields.
        depths: Choices of how many blocks a module stands in, ascending.
        blocks: Of the backbone.
    """

    widths: tuple[tuple[int, ...], ...]
    depths: tuple[int, ...]
    blocks: int

    @property
    def smallest(self) -> Architecture:
        return self._build([[widths[0]] * self.depths[0] for widths in self.widths])

    def draw(self, rng: random.Random) -> Architecture:
        return self._build([[rng.choice(widths) for _ in range(rng.choice(self.depths))] for widths in self.widths])

    def mutate(self, parent: Architecture, rng: random.Random, mutation: float, deepening: float) -> Architecture:
        drawn = []
        for widths, own in zip(self.widths, astuple(parent), strict=True):
            module = [width for width in own if width]
            if rng.random() < mutation:
                depth = rng.choice(self.depths) if rng.random() < deepening else len(module)
                module = [rng.choice(widths) if rng.random() < mutation else width for width in module[:depth]]
                module += [rng.choice(widths) for _ in range(depth - len(module))]
            drawn.append(module)
        return self._build(drawn)

    def cross(self, one: Architecture, other: Architecture, rng: random.Random) -> Architecture:
        """Each module whole, from one parent or the other."""
        return Architecture(*(rng.choice(pair) for pair in zip(astuple(one), astuple(other), strict=True)))

    def shrink(self, architecture: Architecture, rng: random.Random) -> Architecture:
        """One step smaller: the next width below in one block, or the next depth below of one module."""
        modules = [[width for width in own if width] for own in astuple(architecture)]
        steps: list[tuple[int, int, int]] = []  # module, block or -1 for the depth, new value
        for kind, (widths, module) in enumerate(zip(self.widths, modules, strict=True)):
            lower = {width: below for below, width in itertools.pairwise(widths)}
            steps += [(kind, block, lower[width]) for block, width in enumerate(module) if width in lower]
            shallower = [depth for depth in self.depths if depth < len(module)]
            steps += [(kind, -1, shallower[-1])] if shallower else []
        kind, block, value = rng.choice(steps)
        if block < 0:
            del modules[kind][value:]
        else:
            modules[kind][block] = value
        return self._build(modules)

    def _build(self, modules: Sequence[Sequence[int]]) -> Architecture:
        return Architecture(*((*module, *(0,) * (self.blocks - len(module))) for module in modules))


@dataclass(frozen=True)
class Generation:
    """What is known after a generation.

    Args:
        number: From 1.
        measured: Architectures measured in it.
        best: The best one so far.
        accuracy: Its fitness.
    """

    number: int
    measured: int
    best: Architecture
    accuracy: float


def evolve(
    space: Space,
    config: SearchConfig,
    seed: int,
    size: Callable[[Architecture], int],
    fitness: Callable[[Architecture], float],
    told: Callable[[Generation], None] = lambda generation: None,
) -> tuple[Architecture, float]:
    """The best architecture within `config.budget`, and its fitness.

    A function of its arguments: where `fitness` remembers what it measured, the same call again goes quickly to
    where it was stopped, and on from there.

    Args:
        space: What there is.
        config: The recipe.
        seed: Of every draw.
        size: Parameters of an architecture.
        fitness: Accuracy of an architecture.
        told: Called after every generation.

    Raises:
        ValueError: The smallest architecture is above the budget.
    """
    check_budget(space, config, size)
    rng = random.Random(seed)
    known: dict[Architecture, float] = {}

    def new(draw: Callable[[], Architecture], count: int, taken: list[Architecture]) -> list[Architecture]:
        found: list[Architecture] = []
        for _ in range(TRIES * count):
            if len(found) == count:
                break
            one = draw()
            if one not in known and one not in taken and one not in found and size(one) <= config.budget:
                found.append(one)
        return found

    def anything() -> Architecture:
        one = space.draw(rng)
        for _ in range(TRIES):  # a tight budget holds few of the draws
            if size(one) <= config.budget:
                break
            one = space.draw(rng)
        while size(one) > config.budget:
            one = space.shrink(one, rng)
        return one

    def ranked() -> list[Architecture]:
        return sorted(known, key=lambda one: (-known[one], size(one)))

    for number in range(1, config.generations + 1):
        population: list[Architecture] = []
        if parents := ranked()[: config.parents]:
            population += new(
                lambda: space.mutate(rng.choice(parents), rng, config.mutation, config.deepening),
                config.mutations,
                population,
            )
            population += new(
                lambda: space.cross(rng.choice(parents), rng.choice(parents), rng), config.crossovers, population
            )
        population += new(anything, config.population - len(population), population)
        for one in population:
            known[one] = fitness(one)
        best = ranked()[0]
        told(Generation(number, len(population), best, known[best]))
    best = ranked()[0]
    return best, known[best]


def check_budget(space: Space, config: SearchConfig, size: Callable[[Architecture], int]) -> None:
    """Raise ValueError where no architecture of the space is within the budget."""
    least = size(space.smallest)
    if least > config.budget:
        raise ValueError(
            f"search.budget is {config.budget:,} parameters and the smallest architecture of this search space has "
            f"{least:,}; raise it, or give smaller search.depths or widths."
        )
