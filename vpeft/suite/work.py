"""One work item in this process: its members are locked, trained and noted, whatever happens to them."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vpeft import cli, failures
from vpeft.config import Config
from vpeft.results.row import now
from vpeft.results.setting import digest
from vpeft.suite import code
from vpeft.suite.choice import SETTLED, Incomplete, choose
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Item, Member, with_values
from vpeft.suite.peers import Peers
from vpeft.suite.states import State, states
from vpeft.tasks.timing import forget_peak

# Of a member: its kind of state, which is `running` with a reason where another process has it, why, and its row.
Report = Callable[[Member, str, str, Mapping[str, Any] | None], None]


@dataclass(frozen=True)
class _Ready:
    """A member that is to be trained now."""

    member: Member
    config: Config
    beside: dict[str, Any]


def work(folder: SuiteFolder, item: Item, report: Report, stale: bool = False, peers: Peers | None = None) -> list[str]:
    """Run what is left of an item.

    Args:
        folder: Of the suite.
        item: Of its items.jsonl.
        report: Called when a member starts (`running`) and when it ends, with its kind, the reason and its row.
        stale: Whether stale members are run anew.
        peers: The other processes of a member that runs as several; they do what this one tells them.

    Returns:
        How each member stands: done, diverged, failed, stale, waiting or running (elsewhere).

    Raises:
        SystemExit: A signal stopped a run, which can be resumed; it is noted.
    """
    known = folder.members()
    folder.check(item.members, known)
    folder.check((key for one in item.members for key in known[one].needs), known)
    ended: dict[str, str] = {}
    with contextlib.ExitStack() as locks:
        mine = []
        for key in item.members:
            if locks.enter_context(folder.holding(key)):
                mine.append(known[key])
            else:
                ended[key] = "running"
                report(known[key], "running", "another process has it", None)
        ready = list(_ready(folder, mine, known, stale, ended, report))
        if len(ready) > 1:
            # What failed as one is tried one by one, as it stands now: some may have a row, all may have a folder.
            failed = not _together(folder, ready, ended, report)
            left = [one.member for one in ready if one.member.id not in ended]
            ready = list(_ready(folder, left, known, stale, ended, report)) if failed else []
        if peers is not None:
            peers.tell((one.member.id, one.config.train.resume, one.beside["tuning"]) for one in ready)
        for one in ready:
            ended[one.member.id] = _train(folder, one, report)
    return [ended[key] for key in item.members]


def follow(folder: SuiteFolder, peers: Peers) -> None:
    """Take part in what the first process of an item runs; that one alone decides, holds the locks and notes.

    Raises:
        TimeoutError: The first process has said nothing.
        SystemExit: A signal stopped a run.
    """
    from vpeft import run

    known = folder.members()
    for key, resume, tuning in peers.told():
        folder.check([key], known)
        run.train(_configured(folder, known[key], tuning, resume), _beside(known[key], tuning))


def _ready(
    folder: SuiteFolder,
    mine: list[Member],
    known: Mapping[str, Member],
    stale: bool,
    ended: dict[str, str],
    report: Report,
) -> Iterator[_Ready]:
    """Members that are not finished, with the settings that are chosen for them."""
    needed = dict.fromkeys(key for one in mine for key in one.needs)
    found = states(folder, [*(known[key] for key in needed), *mine], code.identity())
    for one in mine:
        state = _unlocked(folder, one, found[one.id])
        if state.kind in SETTLED or (state.kind == "stale" and not stale):
            ended[one.id] = state.kind
            report(one, state.kind, state.why or "known already", state.row)
            continue
        try:
            tuning = choose(folder, one, known, found)
        except Incomplete as error:
            ended[one.id] = "waiting"
            report(one, "waiting", str(error), None)
            continue
        if tuning:
            folder.write_choice(one.method, one.task, tuning)
        yield _Ready(one, _config(folder, one, tuning, state), _beside(one, tuning))


def _unlocked(folder: SuiteFolder, one: Member, state: State) -> State:
    """The state of a member that this process itself holds."""
    return State("interrupted") if state.kind == "running" else state


def _config(folder: SuiteFolder, one: Member, tuning: Mapping[str, Any] | None, state: State) -> Config:
    # A run that other code began is left; so is a finished one that is run anew.
    note = folder.note(one.id)
    begun = note.get("code") == code.identity() and note.get("values") == _values(tuning) and state.kind != "done"
    return _configured(folder, one, tuning, begun)


def _configured(folder: SuiteFolder, one: Member, tuning: Mapping[str, Any] | None, resume: bool) -> Config:
    values: dict[str, Any] = dict(tuning["chosen"]) if tuning else {}
    # Runs with other choices are other runs, so they have other names.
    mark = f"-{digest(values)[:4]}" if values else ""
    values |= {"output": str(folder.output(one.phase)), "name": one.name + mark, "train.resume": resume}
    return with_values(one.settings, f"{folder.path}/members.jsonl", values)


def _values(tuning: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return tuning["chosen"] if tuning else None


def _beside(one: Member, tuning: Mapping[str, Any] | None) -> dict[str, Any]:
    said = {"member": one.id, "method": one.method, "phase": one.phase, "point": one.point, "code": code.identity()}
    return {"suite": said, "tuning": tuning}


def _train(folder: SuiteFolder, one: _Ready, report: Report) -> str:
    from vpeft import run

    _start(folder, one, report)
    forget_peak()
    try:
        row = run.train(one.config, one.beside)
    except SystemExit as error:
        _interrupted(folder, one, report)
        raise error
    except Exception as error:
        return _failed(folder, one, error, report)
    return _done(folder, one, row, report)


def _together(folder: SuiteFolder, ready: list[_Ready], ended: dict[str, str], report: Report) -> bool:
    """Train several members as one; False where that failed, and what has no row is to be tried alone."""
    from vpeft.packed import train_together

    for one in ready:
        _start(folder, one, report)
    forget_peak()
    try:
        outcomes = train_together([one.config for one in ready], [one.beside for one in ready])
    except SystemExit:
        for one in ready:
            _interrupted(folder, one, report)
        raise
    except Exception:
        traceback.print_exc()
        print("The pack failed; its members are trained one by one.", flush=True)
        return False
    # Memory is short for all of a pack at once, so which member asked for too much of it says nothing.
    short = [one for one in outcomes if isinstance(one, Exception) and failures.out_of_memory(one)]
    if short:
        print(f"{failures.said(short[0])} The members of the pack that did not end are trained one by one.", flush=True)
    for one, outcome in zip(ready, outcomes, strict=True):
        if isinstance(outcome, Exception) and failures.out_of_memory(outcome):
            continue
        if isinstance(outcome, Exception):
            ended[one.member.id] = _failed(folder, one, outcome, report)
        else:
            ended[one.member.id] = _done(folder, one, outcome, report)
    return not short


def _start(folder: SuiteFolder, one: _Ready, report: Report) -> None:
    chosen = _values(one.beside["tuning"])
    place = {"host": socket.gethostname(), "pid": os.getpid(), "started": now()}
    folder.write_note(one.member.id, status="running", code=code.identity(), values=chosen, error="", **place)
    report(one.member, "running", "", None)


def _done(folder: SuiteFolder, one: _Ready, row: Mapping[str, Any], report: Report) -> str:
    folder.write_note(one.member.id, status="done", error="", ended=now())
    report(one.member, "done", "", row)
    return "done"


def _interrupted(folder: SuiteFolder, one: _Ready, report: Report) -> None:
    folder.write_note(one.member.id, status="interrupted", ended=now())
    report(one.member, "interrupted", "stopped by a signal; it goes on from its last checkpoint", None)


def _failed(folder: SuiteFolder, one: _Ready, error: Exception, report: Report) -> str:
    traceback.print_exception(error)
    words = cli.sentence(error) or str(error).strip() or "no message"
    said = f"{type(error).__name__}: {words}".replace("\n", " ")
    # A rate at which training falls apart is what a sweep is there to find.
    kind = "diverged" if isinstance(error, FloatingPointError) and one.member.phase == "tuning" else "failed"
    folder.write_note(one.member.id, status=kind, error=said, ended=now())
    report(one.member, kind, said, None)
    return kind
