"""Architectures: how they are drawn, changed and chosen."""

import random
from dataclasses import astuple

import pytest

from vpeft.evolution import Space, evolve
from vpeft.methods.noah import Architecture
from vpeft.search_settings import SearchConfig

SPACE = Space(widths=((1, 5, 10), (2, 4), (3,)), depths=(1, 2, 4), blocks=4)


def size(architecture):
    return sum(map(sum, astuple(architecture)))


def legal(architecture):
    for widths, own in zip(SPACE.widths, astuple(architecture), strict=True):
        standing = [width for width in own if width]
        assert len(standing) in SPACE.depths
        assert own == (*standing, *(0,) * (4 - len(standing))), "a module stands in the first blocks"
        assert set(standing) <= set(widths)
    return True


def settings(**options):
    small = {"budget": 60, "generations": 4, "population": 10, "parents": 4, "mutations": 4, "crossovers": 4}
    return SearchConfig(**{**small, **options})


def test_every_way_of_making_an_architecture_stays_in_the_space():
    rng = random.Random(0)
    one, other = SPACE.draw(rng), SPACE.draw(rng)
    for _ in range(300):
        assert legal(one)
        assert legal(SPACE.cross(one, other, rng))
        one, other = SPACE.mutate(other, rng, 0.5, 0.5), SPACE.draw(rng)
    assert legal(SPACE.smallest)
    assert size(SPACE.smallest) == 1 + 2 + 3


def test_a_mutation_changes_widths_and_depths_and_without_probability_nothing():
    rng = random.Random(0)
    parent = Architecture((5, 5, 0, 0), (2, 2, 0, 0), (3, 3, 0, 0))
    assert all(SPACE.mutate(parent, rng, 0.0, 1.0) == parent for _ in range(20))
    mutants = {SPACE.mutate(parent, rng, 0.5, 0.0) for _ in range(200)}
    assert {sum(map(bool, one.prompts)) for one in mutants} == {2}
    assert {one.prompts[0] for one in mutants} == {1, 5, 10}
    deeper = {SPACE.mutate(parent, rng, 0.5, 1.0) for _ in range(200)}
    assert {sum(map(bool, one.prompts)) for one in deeper} == {1, 2, 4}


def test_a_crossover_takes_each_module_whole():
    rng = random.Random(0)
    one, other = Architecture((1, 1, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)), Architecture((10,) * 4, (4,) * 4, (3,) * 4)
    crossed = {SPACE.cross(one, other, rng) for _ in range(100)}
    assert len(crossed) == 8
    for child in crossed:
        assert all(own in pair for own, *pair in zip(*map(astuple, (child, one, other)), strict=True))


def test_shrinking_goes_down_step_by_step_to_the_smallest():
    rng = random.Random(0)
    one = Architecture((10,) * 4, (4,) * 4, (3,) * 4)
    steps = 0
    while one != SPACE.smallest:
        smaller = SPACE.shrink(one, rng)
        assert legal(smaller)
        assert size(smaller) < size(one)
        one, steps = smaller, steps + 1
    assert steps > 5


@pytest.mark.parametrize("budget", [7, 12, 60])
def test_nothing_above_the_budget_is_measured_and_nothing_twice(budget):
    measured = []

    def fitness(one):
        assert size(one) <= budget
        measured.append(one)
        return size(one) / 100

    best, accuracy = evolve(SPACE, settings(budget=budget), 0, size, fitness)
    assert len(set(measured)) == len(measured)
    assert accuracy == max(size(one) for one in measured) / 100 == size(best) / 100


def test_evolution_finds_better_than_chance_and_keeps_the_best_of_all_generations():
    target = Architecture((10, 1, 0, 0), (4, 2, 4, 2), (3, 0, 0, 0))
    space = Space(SPACE.widths, SPACE.depths, 4)

    def fitness(one):
        return sum(a == b for a, b in zip(sum(astuple(one), ()), sum(astuple(target), ()), strict=True)) / 12

    told = []
    config = settings(generations=8, population=20, mutations=8, crossovers=8)
    best, accuracy = evolve(space, config, 0, size, fitness, told.append)
    rng = random.Random(1)
    assert accuracy > sum(fitness(space.draw(rng)) for _ in range(160)) / 160 + 0.3
    assert [generation.number for generation in told] == list(range(1, 9))
    assert [generation.accuracy for generation in told] == sorted(generation.accuracy for generation in told)
    assert told[-1].best == best


def test_between_equal_accuracies_the_smaller_architecture_wins():
    sizes = []
    best, _ = evolve(SPACE, settings(), 0, size, lambda one: sizes.append(size(one)) or 0.5)
    assert size(best) == min(sizes)


def test_the_same_seed_measures_the_same_and_a_stopped_evolution_goes_on_as_if_it_had_not_been():
    order, known = [], {}

    def fitness(one):
        order.append(one)
        return (hash(one) % 97) / 97

    evolve(SPACE, settings(), 5, size, fitness)
    through, order[:] = list(order), []

    def remembered(one):
        if one not in known:
            if len(known) == 13 and not resumed:
                raise KeyboardInterrupt
            known[one] = fitness(one)
        return known[one]

    resumed = False
    with pytest.raises(KeyboardInterrupt):
        evolve(SPACE, settings(), 5, size, remembered)
    resumed = True
    evolve(SPACE, settings(), 5, size, remembered)
    assert order == through


def test_a_small_space_is_measured_whole_and_the_search_ends():
    space = Space(((1,), (1,), (1, 2)), (1,), 2)
    measured = []
    evolve(space, settings(generations=3), 0, size, lambda one: measured.append(one) or 0.0)
    assert len(measured) == 2


def test_an_impossible_budget_is_refused_with_what_is_needed():
    with pytest.raises(ValueError, match=r"search.budget is 5 parameters and the smallest .* has 6; raise it"):
        evolve(SPACE, settings(budget=5), 0, size, lambda one: 0.0)
