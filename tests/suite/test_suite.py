"""Suites from the command to the rows, with processes of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.suite.conftest import FILE
from vpeft.results import read_rows
from vpeft.run import train
from vpeft.suite import code, command, plan, settings, work
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Item, with_values

ROOT = Path(__file__).parents[2]
# Long enough to be disturbed.
LONG = {"method": "lora, rank: 2", "lr": 0.02, "epochs": 40}


def rows_of(request, phase="final"):
    return SuiteFolder(request.output).rows(phase)


def numbers(row):
    return row["test"]["accuracy"], row["test"]["loss"]


def when(condition, then, patience=120.0):
    """Do something in another thread as soon as something holds."""

    def wait():
        end = time.monotonic() + patience
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def begun(request):
    """Whether a member has a checkpoint and no row yet."""
    return lambda: list(request.output.glob("*/last.ckpt")) and not rows_of(request)


def noted_pid(request):
    (note,) = [json.loads(file.read_text()) for file in (request.output / "notes").glob("*.json")]
    return note["pid"]


def test_settings_are_chosen_and_the_final_runs_have_them_and_nothing_is_repeated(write, ask, capsys):
    request = ask(write("lora"), "--seeds", "2", "--sweep", "lr=0.02,1e-9", "--sweep", "wd")
    assert command.run(request) == 0
    finals, tuning = rows_of(request), rows_of(request, "tuning")
    assert [row["seed"] for row in finals] == [0, 1]
    assert [row["seed"] for row in tuning] == [0] * 4
    assert all(row["test"] is None and row["data"]["split"] == "train800" for row in tuning)
    assert all(row["data"]["split"] == "train800val200" for row in finals)
    assert not list((request.output / "tuning").glob("*/adapter.safetensors"))
    best = max(row["val"]["accuracy"] for row in tuning)
    for row in finals:
        told = row["tuning"]
        assert told["grid"] == {"optim.lr": [0.02, 1e-9], "optim.weight_decay": [1e-4, 1e-3]}
        assert told["val_accuracy"] == best
        assert row["optim"]["lr"] == told["chosen"]["optim.lr"] == 0.02
        assert row["optim"]["weight_decay"] == told["chosen"]["optim.weight_decay"]
        assert [one["val_accuracy"] for one in told["members"]] == [row["val"]["accuracy"] for row in tuning]
    assert json.loads((request.output / "choices.json").read_text())["lora"]["colors"] == finals[0]["tuning"]
    capsys.readouterr()
    assert command.run(request) == 0
    assert "6 done; 0 to run" in capsys.readouterr().out
    assert (rows_of(request), rows_of(request, "tuning")) == (finals, tuning)


def test_a_failing_member_is_tried_again_and_the_others_go_on(write, ask, capsys):
    request = ask(write("bad", lr=1e30), write("good"), "--retries", "1")
    assert command.run(request) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert [("bad" in line, "tried again" in line, "given up" in line) for line in said if " failed: " in line] == [
        (True, True, False),
        (True, False, True),
    ]
    assert [row["suite"]["method"] for row in rows_of(request)] == ["good"]
    assert command.status(request.output) == 0
    shown = capsys.readouterr().out
    assert "1 done, 1 failed" in shown
    assert "failed: colors  bad  seed 0: FloatingPointError: " in shown
    (member,) = [one for one in SuiteFolder(request.output).current() if one.method == "bad"]
    log = SuiteFolder(request.output).log(member).read_text()
    assert log.count("Traceback (most recent call last)") == 2


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """The numbers of a run of `LONG` that nothing happens to."""
    place = tmp_path_factory.mktemp("undisturbed")
    (place / "lora.yaml").write_text(FILE.format(**LONG))
    words = [str(place / "lora.yaml"), "--root", str(images), "--tasks", "colors", "--output", str(place)]
    (member,) = plan.build(settings.parse(words))
    return numbers(train(with_values(member.settings, "test", {"output": str(place)})))


def test_a_killed_process_is_replaced_and_its_member_ends_as_if_nothing_had_been(write, ask, undisturbed, capsys):
    request = ask(write("lora", **LONG))
    killer = when(begun(request), lambda: os.kill(noted_pid(request), signal.SIGKILL))
    assert command.run(request) == 0
    killer.join()
    assert "died of SIGKILL (out of memory, or killed by hand); tried again" in capsys.readouterr().out
    (row,) = rows_of(request)
    assert numbers(row) == undisturbed


def test_a_stopped_suite_goes_on_and_its_rows_are_the_same(write, ask, undisturbed, capsys):
    request = ask(write("lora", **LONG))
    stopper = when(begun(request), lambda: os.kill(os.getpid(), signal.SIGINT))
    assert command.run(request) == 130
    stopper.join()
    assert "1 interrupted" in capsys.readouterr().out
    assert not rows_of(request)
    assert command.run(request) == 0
    (row,) = rows_of(request)
    assert numbers(row) == undisturbed
    (log,) = (request.output / "logs").glob("colors-*.log")
    assert "Stopped by SIGTERM" in log.read_text()
    assert ", resumed" in log.read_text()


def test_two_suites_at_once_run_every_member_once(write, ask):
    """Seeds 0 to 2 belong to both, and are held until both have run the one that is theirs alone."""
    request = ask(write("lora", epochs=1), "--seeds", "0,1,2,3")
    shared = [one.id for one in plan.build(request) if one.seed < 3]
    folder, held = SuiteFolder(request.output), threading.Event()

    def hold():
        with ExitStack() as locks:
            assert all(locks.enter_context(folder.holding(key)) for key in shared)
            held.set()
            when(lambda: {row["seed"] for row in rows_of(request)} == {3, 4}, lambda: None, 400).join()

    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    assert held.wait(60)
    words = [*request.configs, "--root", str(request.root), "--tasks", "colors", "--seeds", "0,1,2,4"]
    other = subprocess.Popen(
        [sys.executable, str(ROOT / "tools" / "suite.py"), *words, "--output", str(request.output)],
        stdout=subprocess.DEVNULL,
    )
    assert command.run(request) == 0
    assert other.wait() == 0
    holder.join()
    lines = (request.output / "results.jsonl").read_bytes().splitlines()
    seeds = [json.loads(line)["seed"] for line in lines]
    assert (set(seeds[:2]), sorted(seeds[2:])) == ({3, 4}, [0, 1, 2])


def test_rows_of_other_code_or_settings_are_stale_and_run_anew_on_request(write, ask, capsys):
    request = ask(write("lora"))
    members = plan.build(request)
    (item,) = SuiteFolder(request.output).add(members, plan.items(members, 1))
    assert work.work(SuiteFolder(request.output), item, lambda *_: None) == ["done"]
    (row,) = rows_of(request)
    other = {**row, "suite": {**row["suite"], "code": "0.0.9+0123456789abcdef"}}
    (request.output / "results.jsonl").write_text(json.dumps(other) + "\n")
    capsys.readouterr()
    assert command.run(request) == 0
    assert "1 run stale, such as colors  lora  seed 0: finished under other code: 0.0.9+" in capsys.readouterr().out
    assert len(rows_of(request)) == 1

    made, _, libraries = code.identity().rpartition(".")
    versions = row["versions"] | {"torch": "2.0.0", "timm": row["versions"]["timm"] + "+local"}
    other = {**row, "versions": versions, "suite": {**row["suite"], "code": f"{made}.{libraries[::-1]}"}}
    (request.output / "results.jsonl").write_text(json.dumps(other) + "\n")
    assert command.run(request) == 0
    said = capsys.readouterr().out
    assert re.search(r"seed 0: finished under other libraries: torch was 2\.0\.0 and is 2\.[0-9.]+\. --rerun", said)

    changed = ask(write("lora", lr=0.03))
    assert command.run(changed) == 0
    assert "finished under other settings: optim.lr was 0.02 and is 0.03" in capsys.readouterr().out
    assert len(rows_of(request)) == 1

    again = ask(request.configs[0], "--rerun", "stale")
    assert command.run(again) == 0
    old, new = rows_of(again)
    assert (old["optim"]["lr"], new["optim"]["lr"]) == (0.02, 0.03)
    assert new["suite"]["code"] == code.identity()
    assert command.run(changed) == 0
    assert "1 done; 0 to run" in capsys.readouterr().out


def test_tuning_members_never_see_the_test_split(write, ask, images, tmp_path):
    root = tmp_path / "broken"
    for part in ("train", "test"):
        for image in images.glob("*/*.png"):
            target = root / part / image.parent.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(image.read_bytes() if part == "train" else b"no image")
    request = ask(write("lora"), "--sweep", "lr=0.02,0.01", root=root, tasks="broken")
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    items = folder.add(members, plan.items(members, 1))
    ended = [work.work(folder, item, lambda *_: None) for item in items]
    assert ended == [["done"], ["done"], ["failed"]]
    assert "no image" not in str(rows_of(request, "tuning"))
    assert folder.note(items[2].members[0])["error"].startswith("UnreadableImage: ")


def test_a_pack_goes_through_one_call_and_fails_member_by_member(write, ask, monkeypatch):
    import vpeft.packed

    request = ask(write("lora"), "--seeds", "3", "--pretrained", "auto", "--pack", "2")
    members = plan.build(request)
    groups = plan.items(members, 2)
    assert [len(group) for group in groups] == [2, 1]
    folder = SuiteFolder(request.output)
    items = folder.add(members, groups)
    called = []

    def train_together(configs, beside):
        called.append([config.seed for config in configs])
        return [{"test": None}, FloatingPointError("The loss is not a finite number")]

    monkeypatch.setattr(vpeft.packed, "train_together", train_together)
    assert work.work(folder, items[0], lambda *_: None) == ["done", "failed"]
    assert called == [[0, 1]]


def test_tuning_members_in_a_pack_measure_what_they_do_alone(write, ask, tmp_path):
    request = ask(write("lora"), "--sweep", "lr=0.005,0.002", "--optim.name", "sgd")
    members = plan.build(request)[:2]
    rows = {}
    for size in (1, 2):
        folder = SuiteFolder(tmp_path / str(size))
        groups = plan.items(members, size)
        assert {len(group) for group in groups} == {size}
        for item in folder.add(members, groups):
            assert work.work(folder, item, lambda *_: None) == ["done"] * size
        rows[size] = {row["suite"]["member"]: row for row in folder.rows("tuning")}
    assert set(rows[1]) == set(rows[2]) == {one.id for one in members}
    for key, row in rows[2].items():
        assert row["packed"]["members"] == 2
        assert row["val"]["loss"] == pytest.approx(rows[1][key]["val"]["loss"], abs=1e-5)


def test_an_item_keeps_its_line(write, ask):
    first = plan.build(ask(write("lora")))
    folder = SuiteFolder(ask(write("lora")).output)
    assert folder.add(first, [[one] for one in first]) == [Item(0, "final", [first[0].id])]
    more = plan.build(ask(write("bitfit", "bitfit"), write("lora"), "--seeds", "2"))
    indices = [item.index for item in folder.add(more, [[one] for one in more])]
    assert indices == [1, 0, 2, 3]
    assert [row["index"] for row in read_rows(folder.path / "items.jsonl")] == [0, 1, 2, 3]
