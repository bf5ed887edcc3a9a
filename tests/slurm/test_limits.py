"""The signals that Slurm itself sends, to a command that answers them as a run does."""

import sys

from tests.slurm.cluster import wait
from vpeft.slurm import SlurmOptions, active, members, submit
from vpeft.slurm.notes import events

CODE = """
import os, signal, sys, time
def leave(number, frame):
    print("got", signal.Signals(number).name, flush=True)
    sys.exit(128 + number)
signal.signal(signal.SIGUSR1, leave)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(0 if "SLURM_RESTART_COUNT" in os.environ else 300)
"""
COMMAND = [sys.executable, "-c", CODE]


def ready(folder):
    said = folder / "stdout"
    return said.exists() and "ready" in said.read_text()


def test_before_the_time_limit_a_job_saves_and_queues_itself_again(slurm, tmp_path):
    submit(COMMAND, [0], tmp_path, "limit", SlurmOptions(time="1", grace=50))
    wait(lambda: not active(tmp_path, "limit"))
    member = members(tmp_path, "limit")[0]
    assert (member.state, member.runs) == ("completed", 2)
    assert (member.folder / "stdout").read_text() == "ready\ngot SIGUSR1\nready\n"
    assert [event.get("state", event["event"]) for event in events(member.folder)] == [
        "start",
        "saved",
        "requeue",
        "start",
        "completed",
    ]


def test_a_pre_empted_job_saves_and_slurm_queues_it_again(slurm, tmp_path):
    submit(COMMAND, [0], tmp_path, "low", SlurmOptions(partition="spare"))
    folder = members(tmp_path, "low")[0].folder
    wait(lambda: ready(folder))
    submit(["true"], [0], tmp_path, "high", SlurmOptions(partition="urgent"))
    wait(lambda: not active(tmp_path, "low"))
    member = members(tmp_path, "low")[0]
    assert (member.state, member.runs) == ("completed", 2)
    assert "got SIGTERM" in (member.folder / "stdout").read_text()
    assert "DUE TO PREEMPTION" in (member.folder / "stderr").read_text()


def test_a_cancelled_job_saves_and_is_not_queued_again(slurm, tmp_path):
    (job,) = submit(COMMAND, [0], tmp_path, "cancelled", SlurmOptions(retries=3))
    folder = members(tmp_path, "cancelled")[0].folder
    wait(lambda: ready(folder))
    slurm.run("scancel", job)
    wait(lambda: not active(tmp_path, "cancelled"))
    member = members(tmp_path, "cancelled")[0]
    assert (member.state, member.runs) == ("cancelled", 1)
    assert "got SIGTERM" in (folder / "stdout").read_text()
