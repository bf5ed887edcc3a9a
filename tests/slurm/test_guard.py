"""A cluster does not outlive the process that started it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm import cluster

ROOT = Path(__file__).parents[2]
CODE = """
import sys, time
from pathlib import Path
from tests.slurm import cluster
print(*cluster.start(Path(sys.argv[1])).daemons, flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_no_daemons_and_no_jobs(tmp_path):
    if reason := cluster.missing():
        pytest.skip(f"no Slurm to test with: {reason}")
    words = [sys.executable, "-c", CODE, str(tmp_path)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        daemons = [int(word) for word in owner.stdout.readline().split()]
        assert len(daemons) == 5
        there = cluster.Cluster(tmp_path, daemons)

        there.run("sbatch", f"--output={tmp_path}/out", "--wrap", "echo $$; exec sleep 600")
        cluster.wait(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() != "", 120)
        owner.send_signal(signal.SIGKILL)
    pids = [*daemons, int((tmp_path / "out").read_text())]
    cluster.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 120)
