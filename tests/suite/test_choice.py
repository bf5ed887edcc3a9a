import pytest

from vpeft.suite.choice import Incomplete, choose
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member
from vpeft.suite.states import State


def make(points):
    """A final member over tuning members with these (lr, weight decay)."""
    tuning = [
        Member(f"t{n}", "lora", "digits", 0, "tuning", {}, {"optim.lr": lr, "optim.weight_decay": wd})
        for n, (lr, wd) in enumerate(points)
    ]
    grid = {
        "optim.lr": sorted({lr for lr, _ in points}, key=float),
        "optim.weight_decay": sorted({wd for _, wd in points}, key=float),
    }
    final = Member("f", "lora", "digits", 3, "final", {}, {}, grid, [one.id for one in tuning])
    return final, {one.id: one for one in [*tuning, final]}


def done(accuracy):
    return State("done", row={"val": {"accuracy": accuracy}})


def chosen(tmp_path, points, states):
    final, members = make(points)
    found = choose(SuiteFolder(tmp_path), final, members, {f"t{n}": state for n, state in enumerate(states)})
    return tuple(found["chosen"].values())


def test_the_highest_accuracy_on_val_wins(tmp_path):
    assert chosen(tmp_path, [(1e-3, 0.0), (1e-2, 0.0)], [done(0.5), done(0.6)]) == (1e-2, 0.0)


def test_of_equals_the_smaller_rate_then_the_smaller_decay(tmp_path):
    points = [(1e-1, 0.0), (1e-2, 1e-3), (1e-2, 1e-4)]
    assert chosen(tmp_path, points, [done(0.6)] * 3) == (1e-2, 1e-4)


def test_numbers_in_quotation_marks_are_numbers(tmp_path):
    assert chosen(tmp_path, [("2e-2", 0.0), (0.01, "0.1"), ("1e-2", 0.05)], [done(0.5)] * 3) == ("1e-2", 0.05)


def test_a_rate_at_which_the_loss_is_no_number_is_never_chosen(tmp_path):
    states = [State("diverged", "FloatingPointError: ..."), done(0.1)]
    assert chosen(tmp_path, [(1e-3, 0.0), (1.0, 0.0)], states) == (1.0, 0.0)
    with pytest.raises(Incomplete, match=r"the loss of all 2 tuning runs .* Sweep lower learning rates"):
        chosen(tmp_path, [(1e-3, 0.0), (1.0, 0.0)], states[:1] * 2)


@pytest.mark.parametrize("kind", ["waiting", "failed", "stale", "running", "interrupted"])
def test_nothing_is_chosen_from_a_part(tmp_path, kind):
    with pytest.raises(
        Incomplete, match=r"lora on digits are not chosen yet: 1 of 2 tuning runs .*\(lr 0.01, .*: oh\)"
    ):
        chosen(tmp_path, [(1e-3, 0.0), (1e-2, 0.0)], [done(0.5), State(kind, "oh")])


def test_without_a_sweep_there_is_nothing_to_choose(tmp_path):
    final = Member("f", "lora", "digits", 0, "final", {})
    assert choose(SuiteFolder(tmp_path), final, {}, {}) is None
