"""One Slurm for all tests that need one, whichever of pytest's processes run them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from tests.slurm import cluster

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """The running cluster; its commands find it through SLURM_CONF."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    known = shared / "slurm.json"
    with FileLock(shared / "slurm.lock"):  # the first of the processes starts it, the last one ends it
        if reason := cluster.missing():
            pytest.skip(f"no Slurm to test with: {reason}")
        if not known.exists():
            started = cluster.start(tmp_path_factory.mktemp("slurm"))
            about = {"daemons": started.daemons, "guard": started.guard, "users": 0}
            known.write_text(json.dumps({"folder": str(started.folder), **about}))
        found = json.loads(known.read_text())
        known.write_text(json.dumps(found | {"users": found["users"] + 1}))
    running = cluster.Cluster(Path(found["folder"]), found["daemons"], found["guard"])
    running.hold()
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = running.conf
    yield running
    if before is None:
        del os.environ["SLURM_CONF"]
    else:
        os.environ["SLURM_CONF"] = before
    with FileLock(shared / "slurm.lock"):
        found = json.loads(known.read_text())
        if found["users"] == 1:
            running.stop()
            known.unlink()
        else:
            known.write_text(json.dumps(found | {"users": found["users"] - 1}))


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """The words that stand for `python tools/train.py`, without its imports at every start."""
    words = [sys.executable, "tests/slurm/warm.py", str(tmp_path_factory.mktemp("warm") / "socket")]
    with subprocess.Popen(words, cwd=ROOT) as server:
        try:
            cluster.wait(Path(words[-1]).exists, 300)
            yield words
        finally:
            server.kill()
