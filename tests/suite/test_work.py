"""One item in this process, with what may happen to it."""

import json
import threading

import pytest

from vpeft import packed, run
from vpeft.suite import code, peers, plan, work
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.peers import Peers
from vpeft.suite.states import states


def silent(*_):
    pass


@pytest.fixture
def pair(write, ask):
    """A suite of two final members, in one item."""
    request = ask(write("lora", epochs=1), "--seeds", "2")
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    (item,) = folder.add(members, [members])
    return folder, members, item


def test_after_a_pack_has_failed_as_one_what_is_done_is_not_done_again(pair, monkeypatch):
    folder, members, item = pair

    def fail(configs, beside):
        run.new_run(configs[1])  # has begun
        run.train(configs[0], beside[0])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(packed, "train_together", fail)
    assert work.work(folder, item, silent) == ["done", "done"]
    assert [row["suite"]["member"] for row in folder.rows("final")] == [one.id for one in members]
    assert len(list(folder.path.glob("colors-*"))) == 2, "the run that had begun goes on in its folder"


@pytest.mark.parametrize("status", ["running", "failed"])  # as it left it, and as the launcher that buried it did
def test_a_member_that_was_killed_behind_its_row_is_finished_without_another(pair, status):
    folder, members, item = pair
    work.work(folder, item, silent)
    rows = folder.rows("final")
    result = folder.path / members[0].name / "result.json"
    result.unlink()
    folder.write_note(members[0].id, status=status)
    assert states(folder, members, code.identity())[members[0].id].kind != "done"
    assert work.work(folder, item, silent) == ["done", "done"]
    assert folder.rows("final") == rows
    assert json.loads(result.read_text()) == rows[0]


def test_a_rate_that_diverges_under_new_code_replaces_a_stale_row(write, ask):
    request = ask(write("lora"), "--sweep", "lr=0.02,0.01")
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    folder.add(members, plan.items(members, 1))
    row = {"suite": {"member": members[0].id, "code": "older"}, "tuning": None, "versions": {}}
    row |= {"val": {"accuracy": 0.5}, "test": None, "time": {"wall_seconds": 1.0}}
    (folder.path / "tuning").mkdir()
    (folder.path / "tuning" / "results.jsonl").write_text(json.dumps(row) + "\n")
    assert states(folder, members, code.identity())[members[0].id].kind == "stale"
    folder.write_note(members[0].id, status="diverged", error="no number", code=code.identity())
    assert states(folder, members, code.identity())[members[0].id].kind == "diverged"


def test_of_several_processes_one_decides_and_the_others_run_the_same(write, ask, monkeypatch, tmp_path):
    request = ask(write("lora", epochs=1))
    (member,) = members = plan.build(request)
    folder = SuiteFolder(request.output)
    (item,) = folder.add(members, [members])
    folder.write_note(member.id, status="interrupted", code=code.identity(), values=None)
    given, both = {}, threading.Barrier(2, timeout=60)

    def train(config, beside):
        given[threading.current_thread().name] = config, beside
        both.wait()
        return {"test": None}

    monkeypatch.setattr(run, "train", train)
    other = threading.Thread(target=work.follow, args=(folder, Peers(tmp_path / "start", 1)), name="second")
    other.start()
    assert work.work(folder, item, silent, peers=Peers(tmp_path / "start", 0)) == ["done"]
    other.join()
    assert given["MainThread"] == given["second"]
    assert given["second"][0].train.resume, "the first one has noted the start by then"


def test_where_nothing_is_left_the_other_processes_run_nothing(pair, monkeypatch, tmp_path):
    folder, members, item = pair
    monkeypatch.setattr(run, "train", lambda *_: 1 / 0)
    file = tmp_path / "start"
    with folder.holding(members[0].id), folder.holding(members[1].id):
        assert work.work(folder, item, silent, peers=Peers(file, 0)) == ["running", "running"]
    work.follow(folder, Peers(file, 1))


def test_a_process_that_is_told_nothing_says_so(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "PATIENCE", 0.1)
    with pytest.raises(TimeoutError, match=r"The first process of this item has not written .*start within"):
        work.follow(pair[0], Peers(tmp_path / "start", 1))
