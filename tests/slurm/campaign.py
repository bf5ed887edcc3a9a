"""Two hundred runs as one array on a Slurm of this machine, with kills: does every one end in results.jsonl once?

    python -m tests.slurm.campaign [--jobs 200] [--kills 120] [--at-once 4] [--seed 0] [--cold] [FOLDER]

Each member is `tools/train.py` on a tiny ViT with a seed of its own; all write one results.jsonl. Meanwhile, members
drawn at random are stopped: by SIGUSR1 to the batch process (what Slurm sends before a time limit), by SIGKILL of the
run, by SIGKILL of the batch process (and `scontrol requeue`, as an operator would), or by `scontrol requeue` of a
running job (as pre-emption does). Runs are forked from a process that has made their imports (`tests.slurm.warm`);
with --cold each makes them itself, which is seven CPU seconds a start. It is no test of pytest.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.runs import tiny_config, write_images
from tests.slurm import cluster
from vpeft.config import to_yaml
from vpeft.results import read_rows
from vpeft.slurm import Member, SlurmOptions, members, submit
from vpeft.slurm.notes import events
from vpeft.slurm.status import ACTIVE

KINDS = ("USR1", "SIGKILL of the run", "SIGKILL of the job", "scontrol requeue")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.campaign")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--kills", type=int, default=120)
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cold", action="store_true")
    given = parser.parse_args()
    folder = Path(given.folder or tempfile.mkdtemp(prefix="campaign-"))
    (folder / "slurm").mkdir(parents=True)
    if reason := cluster.missing():
        print(f"no Slurm to run on: {reason}", file=sys.stderr)
        return 1
    slurm = cluster.start(folder / "slurm", cpus=-(-given.at_once // 2), largest=1001)
    os.environ["SLURM_CONF"] = slurm.conf
    try:
        told = carry_out(slurm, folder, given)
    finally:
        slurm.stop()
    (folder / "campaign.json").write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))
    return 0 if told["once"] == given.jobs else 1


def carry_out(slurm: cluster.Cluster, folder: Path, given: argparse.Namespace) -> dict[str, object]:
    config = tiny_config(write_images(folder / "images" / "colors"), folder / "runs", epochs=8)
    config.name = None  # after the seed
    (folder / "config.yaml").write_text(to_yaml(config))
    program, server = ["tools/train.py"], None
    if not given.cold:
        program = ["tests/slurm/warm.py", str(folder / "socket")]
        server = subprocess.Popen([sys.executable, *program])
        cluster.wait((folder / "socket").exists, 120)
    try:
        return _watched(slurm, folder, given, [*program, str(folder / "config.yaml")])
    finally:
        if server:
            server.kill()


def _watched(
    slurm: cluster.Cluster, folder: Path, given: argparse.Namespace, program: Sequence[str]
) -> dict[str, object]:
    command = [sys.executable, *program, "--seed", "{index}"]
    options = SlurmOptions(retries=9, limit=given.at_once)
    started, draw = time.monotonic(), random.Random(given.seed)
    submit([*command, "--train.resume", "true"], range(given.jobs), folder / "logs", "campaign", options)
    # When, after one of its starts, which member is stopped and how.
    plan = collections.defaultdict(list)
    for number in range(given.kills):
        plan[draw.randrange(given.jobs)].append((draw.uniform(0, 15), KINDS[number % len(KINDS)]))
    done: collections.Counter[str] = collections.Counter()
    seen: dict[tuple[int, int], float] = {}
    told = 0.0
    while True:
        now, known = time.monotonic(), members(folder / "logs", "campaign")
        for index, member in known.items():
            if member.state != "running" or not member.runs or not plan[index]:
                continue
            since = seen.setdefault((index, member.runs), now)
            after, how = plan[index][0]
            if now - since >= after and strike(slurm, member, how, program):
                done[how] += 1
                plan[index].pop(0)
        for member in known.values():
            if member.state in ("failed", "lost", "interrupted"):
                slurm.run("scontrol", "requeue", member.job)
                done["requeued by hand"] += 1
        states = collections.Counter(member.state for member in known.values())
        if now - told > 20:
            told = now
            print(f"{now - started:.0f} s {dict(states)} {dict(done)}", file=sys.stderr, flush=True)
        if not any(member.state in ACTIVE or member.state != "completed" for member in known.values()):
            break
        time.sleep(1)
    rows = read_rows(folder / "runs" / "results.jsonl")
    seeds = collections.Counter(row["seed"] for row in rows)
    return {
        "jobs": given.jobs,
        "kills": dict(done),
        "starts": sum(member.runs for member in known.values()),
        "started_again": sum(member.runs > 1 for member in known.values()),
        "rows": len(rows),
        "once": sum(seeds[index] == 1 for index in range(given.jobs)),
        "folders": sum(path.is_dir() for path in (folder / "runs").iterdir()),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


def strike(slurm: cluster.Cluster, member: Member, how: str, program: Sequence[str]) -> bool:
    """Stop a running member; False where it was too late."""
    start = [event for event in events(member.folder) if event["event"] == "start"][-1]
    try:
        if how == "USR1":
            os.kill(start["pid"], signal.SIGUSR1)
        elif how == "SIGKILL of the job":
            os.kill(start["pid"], signal.SIGKILL)
        elif how == "SIGKILL of the run":
            words = ["pgrep", "--full", f"^{' '.join([sys.executable, *program])} --seed {member.index} "]
            for process in subprocess.run(words, capture_output=True, text=True).stdout.split():
                os.kill(int(process), signal.SIGKILL)
        else:
            slurm.run("scontrol", "requeue", member.job)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
