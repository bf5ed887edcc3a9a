"""Arrays on a real Slurm, of commands that take no time."""

import json
import os
import re
import signal
import sys

import pytest

from tests.slurm.cluster import wait
from vpeft.slurm import SlurmOptions, active, arrays, members, status, submit
from vpeft.slurm.notes import events

CODE = (
    "import sys, time; print('this is', sys.argv[1]); time.sleep(float(sys.argv[2])); "
    "sys.exit({3: 1, 4: 2}.get(int(sys.argv[1]), 0))"
)


def command(seconds=0.0):
    return [sys.executable, "-c", CODE, "{index}", str(seconds)]


def test_every_member_runs_once_in_a_folder_of_its_own(slurm, tmp_path):
    logs = tmp_path / "50 %a"  # which a pattern of sbatch would replace
    options = SlurmOptions(limit=2, extra=["--dependency=singleton"])
    jobs = submit(command(), [0, 2, 3, 105], logs, "try", options)
    assert len(jobs) == 2, "MaxArraySize of this cluster is 100"
    assert members(logs, "try").keys() == {0, 2, 3, 105}
    wait(lambda: not active(logs, "try"))
    found = members(logs, "try")
    assert {index: member.state for index, member in found.items()} == {
        0: "completed",
        2: "completed",
        3: "failed",
        105: "completed",
    }
    assert found[3].reason == "code 1"
    assert [found[index].folder.name for index in (0, 2, 105)] == ["try_000", "try_002", "try_105"]
    for index, member in found.items():
        assert (member.folder / "stdout").read_text() == f"this is {index}\n"
        said = json.loads((member.folder / "environment.json").read_text())
        assert said["command"].endswith(f"{index} 0.0")
        assert said["slurm"]["SLURM_JOB_NAME"] == "try"
        assert (said["job"], said["run"]) == (member.job, 1)
    first, second = (json.loads(line) for line in (logs / "try.jsonl").read_text().splitlines())
    assert "--array=0,2-3%2" in first["command"]
    assert f"--dependency=afterany:{jobs[0]},singleton" in second["command"], "the limit holds for both together"


def test_what_waits_or_runs_is_not_submitted_again(slurm, tmp_path):
    submit(command(30), range(4), tmp_path, "twice", SlurmOptions())
    wait(lambda: any(member.runs for member in members(tmp_path, "twice").values()))
    assert submit(command(), range(4), tmp_path, "twice", SlurmOptions()) == []
    (again,) = submit(command(), range(5), tmp_path, "twice", SlurmOptions())
    found = members(tmp_path, "twice")
    assert found[4].job == f"{again}_4"
    slurm.run("scancel", found[0].job.split("_")[0])
    wait(lambda: not active(tmp_path, "twice"))
    found = members(tmp_path, "twice")
    assert [found[index].state for index in range(5)] == ["cancelled"] * 4 + ["failed"]
    submit(command(), range(2), tmp_path, "twice", SlurmOptions())
    wait(lambda: not active(tmp_path, "twice"))
    assert [members(tmp_path, "twice")[index].state for index in range(2)] == ["completed"] * 2


def test_a_failed_member_is_queued_again_as_often_as_allowed(slurm, tmp_path):
    submit(command(), [2, 3, 4], tmp_path, "failing", SlurmOptions(retries=1))
    wait(lambda: members(tmp_path, "failing")[3].state == "requeued")
    wait(lambda: not active(tmp_path, "failing"))
    found = members(tmp_path, "failing")
    assert (found[2].state, found[2].runs) == ("completed", 1)
    assert (found[3].state, found[3].runs) == ("failed", 2)
    assert (found[3].folder / "stdout").read_text() == "this is 3\n" * 2
    assert (found[4].state, found[4].runs, found[4].reason) == ("failed", 1, "code 2"), "wrong input stays wrong"


def test_a_member_whose_batch_process_was_killed_is_not_taken_for_a_finished_one(slurm, tmp_path, monkeypatch):
    submit(command(30), [0], tmp_path, "killed", SlurmOptions())
    wait(lambda: members(tmp_path, "killed")[0].runs == 1)
    (start,) = events(members(tmp_path, "killed")[0].folder)
    os.kill(start["pid"], signal.SIGKILL)
    wait(lambda: not active(tmp_path, "killed"))
    found = members(tmp_path, "killed")[0]
    assert (found.state, found.reason) == ("failed", "FAILED"), "Slurm still knows"
    monkeypatch.setattr(status, "_queue", dict)
    assert members(tmp_path, "killed")[0].state == "lost", "it has forgotten"


def test_a_partition_that_is_not_there_is_told_in_the_words_of_slurm(slurm, tmp_path):
    with pytest.raises(RuntimeError) as refused:
        submit(command(), range(3), tmp_path, "try", SlurmOptions(partition="gpux"))
    assert re.match(
        r"sbatch: error: invalid partition specified: gpux \| .*Invalid partition name specified\. "
        r"The command was: sbatch .*--array=0-2 .*--partition=gpux ",
        str(refused.value),
    )
    assert not (tmp_path / "try.jsonl").exists()


def test_dependencies_are_one_argument():
    given = ["--nodes=1", "--dependency=singleton", "--dependency=afterany:3"]
    assert arrays._follow(given, None) == ["--nodes=1", "--dependency=singleton,afterany:3"]
    assert arrays._follow(given, "4") == ["--nodes=1", "--dependency=afterany:4,singleton,afterany:3"]
    assert arrays._follow(["--nodes=1"], None) == ["--nodes=1"]


def test_without_slurm_there_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        RuntimeError, match=r"'scontrol' is not on the PATH, so there is no Slurm on this machine\. Sub"
    ):
        submit(command(), range(3), tmp_path, "try", SlurmOptions())


def test_a_name_that_no_folder_can_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"The name of a job is made of letters.*and 'a/b' is not"):
        submit(command(), range(3), tmp_path, "a/b", SlurmOptions())


def test_the_states_of_what_was_never_submitted(tmp_path):
    with pytest.raises(ValueError, match=r"Nothing was submitted under the name try: .*try.jsonl does not exist"):
        members(tmp_path, "try")
