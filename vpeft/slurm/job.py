"""The batch process of a job: start the command with srun, hand signals on, queue again what was stopped.

    python -m vpeft.slurm.job [--first N] [--retries N] [--stage] -- COMMAND

Slurm keeps the output where its `--output` says; beside that lies
    environment.json   where and how the command was started the last time
    events.jsonl       one line for every start and every end

What ends a run, and what follows:
    0                  completed
    138, SIGUSR1       the time limit is near and the run is saved: this job queues itself again
    143, SIGTERM       saved; Slurm knows why. It queues pre-empted jobs again and cancelled ones not
    1, 128 and above   failed, killed, or not ended by a signal in time: queued again up to `--retries` times
    anything else      wrong input, which stays wrong
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vpeft import cli
from vpeft.slurm.notes import events, note

STAGE = "VPEFT_STAGE"
SAVED, STOPPED = 128 + signal.SIGUSR1, 128 + signal.SIGTERM
# After the first task has ended, the others have this long: one that was killed leaves them waiting for it.
WAIT = 300
# Before the time limit srun is ended that has not returned since a signal: Slurm would end this process too, unnoted.
MARGIN = 15


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser(prog="python -m vpeft.slurm.job", description=__doc__, formatter_class=_Plain)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="what is added to the index in the array")
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="how often a failed run is queued again")
    parser.add_argument("--stage", action="store_true", help="copy the data to the node's own disk first")
    place = list(argv).index("--") if "--" in argv else len(argv)
    own, command = argv[:place], argv[place + 1 :]
    given = parser.parse_args(own)
    if not command:
        parser.error("no command is given; write it behind --, as in -- python tools/train.py CONFIG")
    slurm = _variables()
    index = str(given.first + int(slurm.get("SLURM_ARRAY_TASK_ID", 0)))
    command = [word.replace("{index}", index) for word in command]
    folder = _folder(slurm)
    if given.stage:
        os.environ[STAGE] = "1"
    started = time.monotonic()
    task = Task(_srun(slurm), int(slurm.get("SLURM_JOB_END_TIME", 0)))  # from here on no signal ends this process
    environment = _environment(command, slurm)
    (folder / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    note(folder, {"event": "start", **{key: environment[key] for key in ("job", "run", "host", "pid", "time")}})
    code = task.run(command)
    state = {0: "completed", SAVED: "saved", STOPPED: "stopped"}.get(code, "failed")
    if state == "failed" and signal.SIGTERM in task.received:  # srun itself may end first, with a code of its own
        state = "stopped"
    curable = state == "failed" and (code == 1 or code >= 128)
    again = state == "saved" or (curable and _failures(folder, environment["job"]) < given.retries)
    note(folder, {"event": "end", "state": state, "code": code, "seconds": round(time.monotonic() - started, 1)})
    if again:  # noted before, because this ends the process
        return _requeue(folder, environment["job"], code)
    return code


class _Plain(argparse.RawDescriptionHelpFormatter):
    pass


class Task:
    """The command as one or several tasks of this job.

    Args:
        srun: The words that start it.
        end: Unix time of the job's limit; 0 where it is not known.
    """

    def __init__(self, srun: Sequence[str], end: int = 0) -> None:
        self.srun, self.end = list(srun), end
        self._process: subprocess.Popen[bytes] | None = None
        self.received: list[int] = []
        for number in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(number, self._hand_on)
        signal.signal(signal.SIGALRM, self._give_up)

    def run(self, command: Sequence[str]) -> int:
        """Its exit code; 128 + the number of the signal that ended it, as in a shell."""
        self._process = subprocess.Popen([*self.srun, *command])
        for number in list(self.received):
            self._process.send_signal(number)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self._process is not None:
            self._process.send_signal(number)
        if (left := int(self.end - time.time()) - MARGIN) > 0:
            signal.alarm(left)

    def _give_up(self, number: int, frame: FrameType | None) -> None:
        if self._process is not None:
            self._process.kill()


def _srun(slurm: Mapping[str, str]) -> list[str]:
    # Nodes and tasks come from sbatch; the CPUs of a task do not since Slurm 22.05.
    words = ["srun", f"--wait={WAIT}", "--ntasks-per-node", slurm.get("SLURM_NTASKS_PER_NODE", "1")]
    return words + [f"--cpus-per-task={slurm['SLURM_CPUS_PER_TASK']}"] * ("SLURM_CPUS_PER_TASK" in slurm)


def _variables() -> dict[str, str]:
    slurm = {key: value for key, value in os.environ.items() if key.startswith("SLURM_")}
    if "SLURM_JOB_ID" not in slurm:
        raise ValueError("This is not a job of Slurm; submit it with sbatch, as tools/slurm/train.sbatch shows.")
    return slurm


def _folder(slurm: Mapping[str, str]) -> Path:
    """Where Slurm writes this job's output."""
    file = Path(os.readlink("/proc/self/fd/1"))
    return file.parent if file.is_file() else Path(slurm.get("SLURM_SUBMIT_DIR", "."))


def _environment(command: Sequence[str], slurm: Mapping[str, str]) -> dict[str, Any]:
    versions = {name: _version(name) for name in ("vpeft", "torch", "lightning", "timm", "transformers")}
    array = slurm.get("SLURM_ARRAY_JOB_ID")
    return {
        "job": f"{array}_{slurm['SLURM_ARRAY_TASK_ID']}" if array else slurm["SLURM_JOB_ID"],
        "run": int(slurm.get("SLURM_RESTART_COUNT", 0)) + 1,
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "folder": str(Path.cwd()),
        "command": shlex.join(command),
        "python": f"{sys.version.split()[0]} {sys.executable}",
        "versions": versions,
        "slurm": dict(sorted(slurm.items())),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _failures(folder: Path, job: str) -> int:
    """How often this job has failed before; an earlier submission of the member does not count."""
    starts = [place for place, event in enumerate(events(folder)) if event.get("job") == job]
    return sum(event.get("state") == "failed" for event in events(folder)[starts[0] :]) if starts else 0


def _requeue(folder: Path, job: str, code: int) -> int:
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if done.returncode:
        print(f"scontrol requeue {job}: {done.stderr.strip()}. Submit it again.", file=sys.stderr, flush=True)
    else:
        note(folder, {"event": "requeue", "job": job})
    return code


if __name__ == "__main__":
    cli.run(main)
