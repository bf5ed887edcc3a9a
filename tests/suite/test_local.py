"""What the local launcher makes of what its processes say, and of their deaths."""

import os
from types import SimpleNamespace

import pytest

from vpeft.suite.folder import SuiteFolder
from vpeft.suite.local import Pool, _Process
from vpeft.suite.members import Item, Member


@pytest.fixture
def pool(tmp_path):
    """One process at an item of two members, and one attempt more at each."""
    members = {key: Member(key, "lora", "digits", seed, "final", {}) for seed, key in enumerate("ab")}
    item = Item(0, "final", ["a", "b"])
    pool = Pool(SuiteFolder(tmp_path), members, [item], set(), 1, 1, False, lambda *_: None, lambda *_: None)
    reading, writing = os.pipe()
    os.close(writing)
    process = _Process(0, SimpleNamespace(wait=lambda: -9), os.fdopen(reading, "rb", buffering=0), ready=True)  # type: ignore[arg-type]
    pool.processes.append(process)
    pool.selector.register(process.events, 1, process)
    process.item = pool.waiting.popleft()
    pool._start = lambda place: None  # type: ignore[method-assign]
    return pool, process


def say(pool, process, *kinds):
    for key, kind in kinds:
        pool._note(process, {"kind": kind, "member": key, "why": "", "said": None})


def test_a_process_that_dies_fails_what_it_had_not_ended(pool):
    pool, process = pool
    say(pool, process, ("a", "running"), ("a", "done"))
    pool._bury(process)
    assert pool.ended == {"a": "done", "b": "failed"}
    assert not pool.folder.note("a")
    assert pool.folder.note("b")["error"] == "its process died of SIGKILL (out of memory, or killed by hand)"
    assert [item.index for item in pool.waiting] == [0], "tried again"


def test_a_member_that_another_suite_runs_already_is_not_noted_as_failed(pool):
    pool, process = pool
    say(pool, process, ("a", "running"))
    with pool.folder.holding("a"):
        pool._bury(process)
    assert not pool.folder.note("a")
    assert pool.folder.note("b")["status"] == "failed"


def test_a_process_that_a_signal_stopped_is_no_failure_and_its_member_goes_on(pool):
    pool, process = pool
    process.handle.wait = lambda: 143
    say(pool, process, ("a", "running"), ("b", "running"), ("a", "interrupted"), ("b", "interrupted"))
    pool._bury(process)
    assert pool.ended == {"a": "interrupted", "b": "interrupted"}
    assert not pool.folder.note("a")
    assert [item.index for item in pool.waiting] == [0]


def test_a_pack_that_goes_on_one_by_one_is_one_attempt(pool):
    pool, process = pool
    say(pool, process, ("a", "running"), ("b", "running"), ("a", "running"), ("a", "done"), ("b", "running"))
    assert process.running == ["b"]
    assert pool.attempts == {"a": 1, "b": 1}


def test_what_another_suite_runs_gives_no_further_attempts_to_what_fails_beside_it(pool):
    pool, process = pool
    pool.ended = {"a": "running", "b": "failed"}
    pool.attempts["b"] = 1
    pool._again(process.item)
    assert len(pool.elsewhere) == 1
    pool.attempts["b"] = 2
    pool._again(process.item)
    assert len(pool.elsewhere) == 1, "no more"
