"""A real Slurm on one machine, without systemd: nodes of one core, no accounts, requeued jobs start soon."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]
NEEDED = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "srun")
NODES = ("node1", "node2", "node3")
# One machine plays several nodes where its slurmd was built for that, as Debian's is.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=6
CredType=cred/munge
SlurmUser=root
SlurmdParameters=config_overrides
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize={largest}
KillWait=20
ReturnToService=2
MailProg=/bin/true
MpiDefault=none
DefMemPerCPU=1000
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs={cpus} RealMemory=4000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs={cpus} RealMemory=4000
NodeName=node3 NodeHostname={host} NodeAddr=127.0.0.1 Port={node3} CPUs={cpus} RealMemory=4000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
PartitionName=spare Nodes=node3 MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=node3 MaxTime=INFINITE State=UP PriorityTier=9
"""


@dataclass
class Cluster:
    """A running Slurm.

    Args:
        folder: Of its files.
        daemons: Their process ids.
        guard: Of the process that ends them when those that hold the cluster are gone.
    """

    folder: Path
    daemons: list[int]
    guard: int | None = None

    @property
    def conf(self) -> str:
        return str(self.folder / "slurm.conf")

    def environment(self) -> dict[str, str]:
        """What Slurm's commands need."""
        return {**os.environ, "SLURM_CONF": self.conf}

    def hold(self) -> None:
        """Keep the cluster running until this process ends, however it does, or stops it."""
        os.open(self.folder / "alive", os.O_WRONLY)  # never closed, which is what the guard waits for

    def run(self, *words: str) -> str:
        """What one of Slurm's commands prints."""
        return subprocess.run(words, env=self.environment(), capture_output=True, text=True).stdout.strip()

    def stop(self) -> None:
        """End all jobs and then the daemons, which jobs would outlive."""
        self.run("scancel", "--me", "--full", "--signal=KILL")
        self.run("scancel", "--me")
        with contextlib.suppress(TimeoutError):
            wait(lambda: not self.run("squeue", "--noheader", "--me"), 30)
        for daemon in reversed(self.daemons):
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon, signal.SIGTERM)
        if self.guard is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.guard, signal.SIGKILL)


def missing() -> str | None:
    """Why there can be no Slurm on this machine, or None; installs it where VPEFT_TEST_INSTALL=1 allows that."""
    if os.geteuid() != 0:
        return "a Slurm of one's own is started as root, and this is not"
    absent = [name for name in NEEDED if shutil.which(name) is None]
    if not absent:
        return None
    if os.environ.get("VPEFT_TEST_INSTALL") != "1":
        return f"{', '.join(absent)} not on the PATH ({' '.join(INSTALL)}, or VPEFT_TEST_INSTALL=1)"
    if shutil.which("apt-get") is None:
        return f"{', '.join(absent)} not on the PATH, and there is no apt-get"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["apt-get", "update"], INSTALL):
        done = subprocess.run(words, env=quiet, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return None


def start(folder: Path, cpus: int = 1, largest: int = 100) -> Cluster:
    """Start munge, the controller and the nodes, and wait until all are idle.

    Args:
        folder: For their files.
        cpus: Of each node; more than there are only share them.
        largest: MaxArraySize.
    """
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    ports = dict(zip(("port", *NODES), _free_ports(1 + len(NODES)), strict=True))
    conf = CONF.format(folder=folder, host=host, cpus=cpus, largest=largest, **ports)
    (folder / "slurm.conf").write_text(conf)
    for name in ("state", "munge"):
        (folder / name).mkdir(mode=0o755)
    key, munge = folder / "munge" / "key", folder / "munge"
    subprocess.run(["mungekey", "--create", f"--keyfile={key}"], check=True)
    words = ["munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={key}"]
    words += [f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=2"]
    cluster = Cluster(folder, [])
    _daemon(cluster, words)
    _up(cluster, lambda: (munge / "socket").exists())
    _daemon(cluster, ["slurmctld", "-D", "-c", "-f", cluster.conf])
    for node in NODES:
        _daemon(cluster, ["slurmd", "-D", "-N", node, "-f", cluster.conf])
    cluster.guard = _guard(cluster)
    state = ("sinfo", "--noheader", "--Node", "--format=%t")  # node3 is in two partitions
    _up(cluster, lambda: cluster.run(*state).split() == ["idle"] * (len(NODES) + 1))
    return cluster


def _daemon(cluster: Cluster, words: list[str]) -> None:
    with (cluster.folder / f"{words[0]}.out").open("ab") as out:
        started = subprocess.Popen(words, env=cluster.environment(), stdout=out, stderr=out, start_new_session=True)
    cluster.daemons.append(started.pid)


def _guard(cluster: Cluster) -> int:
    os.mkfifo(cluster.folder / "alive")
    words = [sys.executable, __file__, str(cluster.folder), *map(str, cluster.daemons)]
    started = subprocess.Popen(words, start_new_session=True)
    cluster.hold()
    return started.pid


def wait(done: Callable[[], bool], seconds: float = 400) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: It does not within that time.
    """
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.1)


def _up(cluster: Cluster, done: Callable[[], bool]) -> None:
    try:
        wait(done, 30)
    except TimeoutError as error:
        said = {file.name: file.read_text()[-2000:] for file in cluster.folder.glob("*.[ol][uo][tg]")}
        cluster.stop()
        raise RuntimeError(f"Slurm did not start within 30 s: {said}") from error


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "alive").read_bytes()  # ends when nobody can write to it any more
    Cluster(folder, [int(word) for word in sys.argv[2:]]).stop()
