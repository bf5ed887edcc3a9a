"""Readers of what commands write for themselves and go on from: folders of runs, suites, searches, jobs, benchmarks.

No command reads TensorBoard's event files. The lists and notes below are read by the next command, by --status and by
whoever was given the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from tests.fuzz.reader import Reader
from tests.results.suites import METHODS, finished
from tests.runs import tiny_config
from vpeft import config, run_folder, search, search_settings, slurm
from vpeft.bench import pages, record
from vpeft.fetch import write_atomic
from vpeft.slurm import notes, status
from vpeft.suite import board, code, command, plan, settings, work
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member, member
from vpeft.suite.peers import Peers
from vpeft.suite.worker import _said
from vpeft.tasks import checkpoint_file

_DOCS = Path(__file__).parents[2] / "docs/benchmarks"
_SEARCH = search_settings.SearchConfig(budget=6000)


def _quiet(call: Any, *given: Any) -> Any:
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)  # as a terminal
    with contextlib.redirect_stdout(printed) as said, contextlib.redirect_stderr(said):
        return call(*given)


def _row(one: Member, chosen: dict[str, Any] | None = None) -> dict[str, Any]:
    beside = work._beside(one, chosen and {"chosen": chosen})
    return finished("colors", "lora", 0, *METHODS["lora"], **beside) | {"val": {"accuracy": 0.5}}


def _members(folder: Path) -> list[Member]:
    own = tiny_config(folder / "images", folder)
    tried = [member(own, "lora", "tuning", {"optim.lr": lr}) for lr in (0.01, 0.02)]
    grid = {"optim.lr": [0.01, 0.02]}
    return [*tried, member(own, "lora", "final", grid=grid, needs=[one.id for one in tried])]


def _suite(folder: Path) -> None:
    one, other, final = _members(folder)
    suite = SuiteFolder(folder)
    suite.add([one, other, final], [[one], [other], [final]])
    for phase, made in (("tuning", one), ("tuning", other), ("final", final)):
        path = suite.output(phase) / "results.jsonl"  # pyright: ignore[reportArgumentType]
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(_row(made, {"optim.lr": 0.01} if phase == "final" else None)) + "\n")
    suite.write_note(one.id, status="failed", code=code.identity(), error="x", values=None)
    (suite.path / "notes/known.json").write_bytes((suite.path / f"notes/{one.id}.json").read_bytes())
    suite.write_choice("lora", "colors", {"chosen": {"optim.lr": 0.01}})


def _status(folder: Path) -> Any:
    suite = SuiteFolder(folder)
    _quiet(command.status, folder)
    board.domains(suite.current())
    return [_said(row) for row in work_rows(suite)]


def work_rows(suite: SuiteFolder) -> list[Any]:
    """The rows that a report of the suite has."""
    from vpeft.suite.states import current_rows

    return current_rows(suite, code.identity())


def _taken(folder: Path) -> Any:
    """What a worker does with an item, up to training."""
    suite = SuiteFolder(folder)
    with mock.patch.object(work, "_train", lambda folder, one, report: one.config.name):
        return [work.work(suite, suite.item(at), lambda *_: None, True) for at in range(3)]


def _noted(folder: Path) -> Any:
    one, *_ = _members(folder)
    suite = SuiteFolder(folder)
    (folder / f"notes/{one.id}.json").write_bytes((folder / "notes/known.json").read_bytes())
    _quiet(command.status, folder)
    suite.write_note(one.id, status="done")
    return suite.note(one.id)


def _chosen(folder: Path) -> Any:
    kept = (folder / "choices.json").read_bytes()
    SuiteFolder(folder).write_choice("lora", "digits", {"chosen": {}})
    made = json.loads((folder / "choices.json").read_text())
    (folder / "choices.json").write_bytes(kept)
    return made


def _told(folder: Path) -> None:
    Peers(folder / "told.json", 0).tell([("a", True, None), ("b", False, {"chosen": {"optim.lr": 0.1}})])


def _jobs(folder: Path) -> None:
    lines = [{"job": "12", "first": 0, "size": 10, "members": [0, 2], "command": "sbatch x"}]
    lines.append({"job": "13", "first": 10, "size": 10, "members": [13], "command": "sbatch x"})
    (folder / "suite.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for index, job in ((0, "12_0"), (2, "12_2"), (13, "13_3")):
        member_of = folder / status.folder_name("suite", index, 10)
        member_of.mkdir()
        notes.note(member_of, {"event": "start", "job": job, "run": 1, "host": "a", "pid": 1, "time": "2026"})
        notes.note(member_of, {"event": "end", "code": 1, "state": "failed", "seconds": 3.5})


def _queued(folder: Path) -> Any:
    with mock.patch.multiple(status, _queue=lambda: {}, _accounts=lambda jobs: {}):
        return slurm.members(folder, "suite"), slurm.active(folder, "suite")


def _run(folder: Path) -> None:
    own = tiny_config(folder / "images", folder, resume=True)
    made = run_folder.create(own)
    made.finish(_row(_members(folder)[-1]), folder / "results.jsonl")


def _resumed(folder: Path) -> Any:
    found = run_folder.find(tiny_config(folder / "images", folder, resume=True))
    return found and _said(found.result)


def _config(folder: Path) -> Any:
    return config.parse([str(folder / "run/config.yaml")])


def _searched(folder: Path) -> None:
    rows = [{"prompts": [1, 0], "lora": [2, 2], "adapter": [4, 0], "accuracy": 0.5}] * 2
    text = json.dumps({"settings": dataclasses.asdict(_SEARCH), "measured": rows})
    (folder / "search.json").write_text(text)
    (folder / "known.json").write_text(text)


def _gone_on(folder: Path) -> Any:
    write_atomic(folder / "search.json", (folder / "known.json").read_bytes())  # reading writes it anew
    search._same_search(run_folder.RunFolder(folder, "x"), _SEARCH)
    return search.Measured(folder / "search.json", _SEARCH).known


def _asked(folder: Path) -> None:
    own = "method: {name: noah}\nbackbone: test_vit.r160_in1k\nimage_size: 32\npretrained: none\n"
    sections = "search: {budget: 6000, depths: [1, 2]}\nsweep: {lr: [1e-3, 1e-2], method.prompts: [1, 2]}\n"
    more = "embedded: {search: {generations: 2}, sweep: {wd: [0.1, 0.2]}}\n"
    (folder / "own.yaml").write_text(own + sections + more)


def _planned(folder: Path) -> Any:
    given = [str(folder / "own.yaml"), "--tasks", "digits", "--sweep", "lr,wd", "--output", str(folder / "out")]
    request = settings.parse(given)
    assert isinstance(request, settings.Request)
    made = plan.build(request)
    return plan.to_yaml(request, made), plan.items(made, 2)


def _options(folder: Path) -> None:
    text = "partition: gpu\ntime: '2:00:00'\ncpus: 4\ngrace: 300\nsetup: [module load cuda]\nextra: [--mem=1G]\n"
    (folder / "slurm.yaml").write_text(text)


def _measured(name: str, folder: Path) -> None:
    found = json.loads((_DOCS / f"{name}_cpu.json").read_text())
    (folder / "m.json").write_text(json.dumps(found))


def _tabulated(folder: Path) -> Any:
    data = record.read(folder / "m.json")
    return pages.parts(data), pages.drawing(data) if data["kind"] != "epochs" else ""


def _training(folder: Path) -> None:
    state = {"state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "epoch": 3, "loops": {"a": [1, None, 0.5]}}
    checkpoint_file.write(folder / "last.ckpt", state)


def _restored(folder: Path) -> Any:
    found = checkpoint_file.read(folder / "last.ckpt")
    return found["state_dict"]["w"].sum() if isinstance(found, dict) else found


_CASES = {name: Reader(partial(_measured, name), "m.json", _tabulated, "json") for name in ("curves", "epochs")}

READERS: dict[str, Reader] = {
    "suite members": Reader(_suite, "members.jsonl", _status, "jsonl"),
    "suite members, at work": Reader(_suite, "members.jsonl", _taken, "jsonl"),
    "suite items": Reader(_suite, "items.jsonl", _taken, "jsonl"),
    "suite rows": Reader(_suite, "results.jsonl", _status, "jsonl", skips=True),
    "suite rows, tuning": Reader(_suite, "tuning/results.jsonl", _taken, "jsonl", skips=True),
    "suite note": Reader(_suite, "notes/known.json", _noted, "json"),
    "suite choices": Reader(_suite, "choices.json", _chosen, "json"),
    "suite peers": Reader(_told, "told.json", lambda at: Peers(at / "told.json", 1).told(), "json"),
    "suite config": Reader(_asked, "own.yaml", _planned, "text"),
    "job arrays": Reader(_jobs, "suite.jsonl", _queued, "jsonl"),
    "job events": Reader(_jobs, "suite_00/events.jsonl", _queued, "jsonl", skips=True),
    "job options": Reader(_options, "slurm.yaml", lambda at: slurm.options([("file", str(at / "slurm.yaml"))]), "text"),
    "run record": Reader(_run, "run/run.json", _resumed, "json"),
    "run result": Reader(_run, "run/result.json", _resumed, "json"),
    "run config": Reader(_run, "run/config.yaml", _config, "text"),
    "search record": Reader(_searched, "known.json", _gone_on, "json"),
    "search config": Reader(_asked, "own.yaml", lambda at: search_settings.parse([str(at / "own.yaml")]), "text"),
    "checkpoint": Reader(_training, "last.ckpt", _restored),
    "checkpoint with a true hash": Reader(_training, "last.ckpt", _restored, "signed"),
    **{f"benchmark, {name}": reader for name, reader in _CASES.items()},
}
