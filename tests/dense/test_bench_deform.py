"""The comparison of deformable attention: what is compared does the same work, and memory is counted."""

import torch

from vpeft.dense.bench_deform import CASES, Setting, Step, bench, footprint, table

TINY = Setting(batch=1, side=64, heads=2, dim=4, points=2, rounds=2, threads=1)


def test_both_kinds_sample_the_same():
    for case in CASES:
        ours, theirs = Step(TINY, case, "ours"), Step(TINY, case, "theirs")
        a, b = (step.run(step.value, step.sizes, step.at, step.weights) for step in (ours, theirs))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_memory_is_what_a_step_holds_at_its_highest():
    step = Step(TINY, "extractor", "ours")
    step.run = lambda value, sizes, at, weights: (
        value.new_ones(10**6).sum() + 0 * value.sum() * at.sum() * weights.sum()
    )
    step.cotangent = torch.ones(())
    held = footprint(step)
    assert 4e6 <= held < 4.2e6


def test_every_kind_stands_in_the_table_with_its_ratio_to_theirs(capsys):
    text = table(bench(TINY, ("theirs", "ours")))
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["injector"] * 2 + ["extractor"] * 2
    theirs = [line for line in text.splitlines() if "| theirs |" in line]
    assert len(theirs) == 2
    assert all(line.split("|")[4].strip() == line.split("|")[6].strip() == "1.00" for line in theirs)
