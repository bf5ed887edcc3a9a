"""How the members of what was submitted are doing.

squeue knows who waits and who runs, and for some minutes who has ended. After that the members' own notes say how they
ended (`vpeft.slurm.job`), and sacct where the cluster keeps accounts.
"""

from __future__ import annotations

import getpass
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpeft.json_file import parsed
from vpeft.slurm.commands import run
from vpeft.slurm.notes import events

ACTIVE = ("pending", "running", "requeued")
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
_CANCELLED = ("CANCELLED", "REVOKED")


@dataclass(frozen=True)
class Member:
    """One member of an array.

    Args:
        index: Its index.
        job: Its id in Slurm, `12_7`.
        state: `pending`, `running`, `requeued` (waits again), `completed`, `failed`, `cancelled`, `interrupted` (saved,
            and not queued again) or `lost` (started, ended without a word, and Slurm knows it no more).
        reason: What Slurm or the exit code says; may be empty.
        runs: How often it was started.
        seconds: Its last run took, if it has ended.
        folder: What it wrote.
    """

    index: int
    job: str
    state: str
    reason: str
    runs: int
    seconds: float | None
    folder: Path


def members(logs: Path, name: str) -> dict[int, Member]:
    """All members that were ever submitted under a name, by index, as their last submission stands.

    Raises:
        ValueError: Nothing was submitted under this name, or the list of what was is damaged.
        RuntimeError: squeue is not here or fails.
    """
    last: dict[int, tuple[str, Path]] = {}
    for line in _submitted(logs, name):
        for index in line["members"]:
            folder = logs / folder_name(name, index, line["size"])
            last[index] = (f"{line['job']}_{index - line['first']}", folder)
    queue = _queue()
    unknown = [job for job, _ in last.values() if job not in queue]
    accounts = _accounts(unknown) if unknown else {}
    found = {}
    for index, (job, folder) in sorted(last.items()):
        notes = _of(events(folder), job)
        state, reason = _state(notes, *queue.get(job, accounts.get(job, ("", ""))))
        ended = notes[-1] if notes and notes[-1]["event"] != "start" else {}
        runs = sum(note["event"] == "start" for note in notes)
        seconds = next((note["seconds"] for note in reversed(notes) if "seconds" in note), None) if ended else None
        found[index] = Member(index, job, state, reason, runs, seconds, folder)
    return found


def active(logs: Path, name: str) -> set[int]:
    """The members that wait or run."""
    return {index for index, member in members(logs, name).items() if member.state in ACTIVE}


def folder_name(name: str, index: int, size: int) -> str:
    """Of one member's folder."""
    return f"{name}_{index // size}{index % size:0{len(str(size)) - 1}d}"


def _submitted(logs: Path, name: str) -> list[dict[str, Any]]:
    file = logs / f"{name}.jsonl"
    if not file.exists():
        raise ValueError(f"Nothing was submitted under the name {name}: {file} does not exist.")
    found = []
    for number, text in enumerate(file.read_bytes().splitlines(), start=1):
        line = parsed(text, {"job": str, "first": int, "size": int, "members": [int]})
        if line is None or line["size"] < 10 or min(line["members"], default=0) < 0:
            raise ValueError(
                f"{file}, line {number} is damaged: put back a copy of the file, or remove the line; the jobs that it "
                "stood for are then not known, so end them first (scancel)."
            )
        found.append(line)
    return found


def _of(notes: list[dict[str, Any]], job: str) -> list[dict[str, Any]]:
    """The notes of one submission; only starts carry its id."""
    first = next((place for place, note in enumerate(notes) if note.get("job") == job), len(notes))
    return notes[first:]


def _state(notes: list[dict[str, Any]], known: str, reason: str) -> tuple[str, str]:
    """What is known of a member: its own notes, and the word and the reason of Slurm (empty where it has none)."""
    if known in _WAITING:
        return ("requeued" if notes else "pending"), reason
    if known in _RUNNING:
        return "running", reason
    end = next((note for note in reversed(notes) if note["event"] in ("start", "end")), None)
    if end is None or end["event"] == "start":  # its batch process was killed
        said = known.split(" ")[0]
        if said in _CANCELLED or (end is None and not said):
            return "cancelled", reason
        return ("failed", said) if said in ("FAILED", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE") else ("lost", said)
    if known.startswith(_CANCELLED) and end["state"] != "completed":
        return "cancelled", f"code {end['code']}"
    if end["state"] in ("saved", "stopped"):
        return "interrupted", f"code {end['code']}"
    return end["state"], "" if end["state"] == "completed" else f"code {end['code']}"


def _queue() -> dict[str, tuple[str, str]]:
    """State and reason of the user's jobs that Slurm has in mind."""
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}", "--format=%F_%K|%T|%r"]
    lines = (line.split("|", 2) for line in run(words).splitlines())
    return {job: (state, "" if reason == "None" else reason) for job, state, reason in lines}


def _accounts(jobs: Iterable[str]) -> dict[str, tuple[str, str]]:
    """The same of jobs it has forgotten, from sacct; nothing where no accounts are kept."""
    arrays = sorted({job.split("_")[0] for job in jobs})
    words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(arrays)}"]
    try:
        done = subprocess.run([*words, "--format=JobID,State"], capture_output=True, text=True)
    except FileNotFoundError:
        return {}
    lines = (line.split("|") for line in done.stdout.splitlines()) if done.returncode == 0 else ()
    return {line[0]: (line[1], "") for line in lines if len(line) == 2}
