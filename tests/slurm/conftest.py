"""One Slurm for all tests that need one, whichever of pytest's processes run them."""

import json
import os

import pytest
from filelock import FileLock

from tests.slurm import cluster


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
            known.write_text(json.dumps({"folder": str(started.folder), "daemons": started.daemons, "users": 0}))
        found = json.loads(known.read_text())
        known.write_text(json.dumps(found | {"users": found["users"] + 1}))
    running = cluster.Cluster(cluster.Path(found["folder"]), found["daemons"])
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
