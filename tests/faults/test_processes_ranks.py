"""One of several processes dies or stops: all end, in a bounded time, and the message names it."""

import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from tests.faults.processes import TRAIN, descendants, gone, of_rank, start, write_config
from vpeft import failures
from vpeft.tasks.ranks import Ranks

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:5310"
SILENT = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"


def trainer(procs=(), environment=None, rank=0, world=2):
    strategy = SimpleNamespace(
        launcher=SimpleNamespace(procs=procs), cluster_environment=environment or LightningEnvironment()
    )
    return SimpleNamespace(strategy=strategy, global_rank=rank, local_rank=rank, world_size=world)


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def test_torchs_words_for_a_lost_process_become_a_sentence_that_names_it(tmp_path, sleeper):
    ranks = Ranks(tmp_path / "last.ckpt")
    ranks.setup(trainer([sleeper]), None, "fit")
    sleeper.kill()
    said = (
        rf"^Process 1 of 2 \(counted from 0; pid {sleeper.pid}\) died of SIGKILL \(out of memory, or killed by hand\), "
        r"and all others were ended\. What it said is above, in the same output\. There is no checkpoint yet; "
    )
    with pytest.raises(RuntimeError, match=said):
        ranks.on_exception(trainer([sleeper]), None, RuntimeError(GLOO))


def test_what_is_no_lost_connection_is_left_as_it_is(tmp_path, sleeper):
    ranks = Ranks(tmp_path / "last.ckpt")
    ranks.setup(trainer([sleeper]), None, "fit")
    for error in (ValueError("a.png is empty (0 bytes)"), SystemExit(143), RuntimeError("mat1 and mat2 do not fit")):
        assert ranks.on_exception(trainer([sleeper]), None, error) is None
    assert sleeper.poll() is None


def test_a_process_that_is_silent_is_killed_also_where_it_is_stopped(tmp_path, sleeper):
    (tmp_path / "last.ckpt").touch()
    ranks = Ranks(tmp_path / "last.ckpt")
    ranks.setup(trainer([sleeper]), None, "fit")
    sleeper.send_signal(signal.SIGSTOP)
    said = rf"one of 1 \(pid {sleeper.pid}\) does not answer; all were ended.* goes on from .*last\.ckpt\.$"
    with pytest.raises(RuntimeError, match=said):
        ranks.on_exception(trainer([sleeper]), None, RuntimeError(SILENT))
    assert sleeper.wait(5) == -signal.SIGKILL


def test_where_the_first_process_hangs_the_watch_ends_it(tmp_path, sleeper, capsys):
    ended = threading.Event()
    ranks = Ranks(tmp_path / "last.ckpt", grace=0.1, every=0.05, end=lambda code: ended.set())
    other = subprocess.Popen([sys.executable, "-c", "import sys; sys.exit(2)"])
    ranks.setup(trainer([sleeper, other], world=3), None, "fit")
    assert ended.wait(10)
    assert f"error: Process 2 of 3 (counted from 0; pid {other.pid}) ended with 2, and all" in capsys.readouterr().err
    assert sleeper.wait(5) == -signal.SIGKILL


def test_processes_that_end_well_end_the_watch(tmp_path):
    ranks = Ranks(tmp_path / "last.ckpt", every=0.05, end=lambda code: pytest.fail("no process failed"))
    before = threading.active_count()
    ranks.setup(trainer([subprocess.Popen(["true"])]), None, "fit")
    (watch,) = [one for one in threading.enumerate() if one.name == "ranks"]
    watch.join(10)
    assert threading.active_count() == before


def test_on_the_second_node_ranks_follow_on_the_first_of_that_node(tmp_path, sleeper):
    ranks, on_node = Ranks(tmp_path / "last.ckpt"), trainer([sleeper], rank=2, world=4)
    ranks.setup(on_node, None, "fit")
    sleeper.kill()
    with pytest.raises(RuntimeError, match=rf"^Process 3 of 4 \(counted from 0; pid {sleeper.pid}\) died"):
        ranks.on_exception(on_node, None, RuntimeError(GLOO))


def test_a_process_that_ends_badly_after_the_work_ends_nobody(tmp_path, sleeper):
    ranks = Ranks(tmp_path / "last.ckpt", grace=0.1, every=0.05, end=lambda code: pytest.fail("the work was done"))
    for stage in ("fit", "test"):
        ranks.setup(trainer([sleeper]), None, stage)
        assert [one.name for one in threading.enumerate()].count("ranks") == 1
        ranks.teardown(trainer([sleeper]), None, stage)
        assert "ranks" not in [one.name for one in threading.enumerate()]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (TorchElasticEnvironment(), "What started them (torchrun, srun) says which one"),
        (None, "Process 0 says which."),
    ],
)
def test_another_process_says_whom_to_ask(tmp_path, environment, said):
    ranks = Ranks(tmp_path / "last.ckpt")
    ranks.setup(trainer((), environment, rank=1), None, "fit")
    with pytest.raises(
        RuntimeError, match=re.escape(f"Process 1 of 2 (counted from 0) has lost another one of its run. {said}")
    ):
        ranks.on_exception(trainer((), environment, rank=1), None, RuntimeError(GLOO))


def test_outside_a_trainer_too_it_is_a_sentence():
    assert failures.said(RuntimeError(GLOO)).startswith("Another process of this run has ended; ")
    assert failures.said(RuntimeError(SILENT)).startswith("Another process of this run does not answer; ")
    for text in ("a bug", "Connection refused", "NCCL error: invalid usage"):
        assert failures.said(RuntimeError(text)) is None


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_process_that_is_killed_ends_the_run_which_can_be_resumed(tmp_path, rank):
    file = write_config(tmp_path)
    run = start([*TRAIN, file])
    everyone = [run.pid, *descendants(run.pid)]
    victim = of_rank(run, rank)
    os.kill(victim, signal.SIGKILL)
    _, said = run.communicate(timeout=200)
    assert gone(everyone)
    assert run.returncode == (1 if rank else -signal.SIGKILL)
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    name = f"Process 1 of 2 (counted from 0; pid {victim}) died of SIGKILL" if rank else "Process 0, which started this"
    assert len(lines) == 1, said
    assert name in lines[0]
    assert str(tmp_path / "out" / "run" / "last.ckpt") in lines[0]
    assert not (tmp_path / "out" / "results.jsonl").exists()


@pytest.mark.slow
def test_a_process_that_stops_ends_the_run_when_its_time_is_up(tmp_path):
    """The time of the process group, half an hour, is made twenty seconds."""
    file = write_config(tmp_path)
    driver = tmp_path / "impatient.py"
    driver.write_text(
        "import sys\nfrom datetime import timedelta\nimport vpeft.cli\nfrom vpeft.tasks.ranks import Ranks\n"
        "setup = Ranks.setup\n"
        "def impatient(self, *rest, **named):\n"
        "    from torch.distributed.distributed_c10d import _set_pg_timeout\n"
        "    _set_pg_timeout(timedelta(seconds=20))\n"
        "    setup(self, *rest, **named)\n"
        "Ranks.setup = impatient\n"
        "sys.path.insert(0, 'tools')\nimport train\nvpeft.cli.run(train.main)\n"
    )
    run = start([sys.executable, driver, file])
    everyone = [run.pid, *descendants(run.pid)]
    victim = of_rank(run, 1)
    os.kill(victim, signal.SIGSTOP)
    _, said = run.communicate(timeout=200)
    assert gone(everyone)
    assert run.returncode == 1
    assert f"error: Of 2 processes, one of 1 (pid {victim}) does not answer; all were ended." in said


@pytest.mark.slow
def test_under_torchrun_its_own_words_name_the_process(tmp_path):
    file = write_config(tmp_path)
    run = start([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, TRAIN[1], file])
    everyone = [run.pid, *descendants(run.pid)]
    victim = of_rank(run, 1)
    os.kill(victim, signal.SIGKILL)
    _, said = run.communicate(timeout=200)
    assert gone(everyone)
    assert run.returncode == 1
    assert re.search(rf"exitcode: -9\).*local_rank: 1 .*pid: {victim}", said), said
    assert "error: Process 0 of 2 (counted from 0) has lost another one of its run. What started them" in said


@pytest.mark.slow
def test_a_process_that_ends_by_an_error_of_its_own_is_named_and_the_rest_ends(tmp_path):
    """Its data are lost to it alone."""
    file = write_config(tmp_path, epochs=3)
    driver = tmp_path / "blind.py"
    driver.write_text(
        "import os, sys, vpeft.cli\nfrom vpeft.data.loader import Batches\nread = Batches.__getitem__\n"
        "def blind(self, fetch):\n"
        "    if os.environ.get('LOCAL_RANK') == '1' and fetch[0] == 2:\n"
        "        raise MemoryError\n"
        "    return read(self, fetch)\n"
        "Batches.__getitem__ = blind\n"
        "sys.path.insert(0, 'tools')\nimport train\nvpeft.cli.run(train.main)\n"
    )
    run = start([sys.executable, driver, file])
    everyone = [run.pid, *descendants(run.pid)]
    _, said = run.communicate(timeout=200)
    assert gone(everyone)
    assert run.returncode == 1
    assert "error: Out of memory of this machine or its container. Lower data.batch_size" in said
    assert re.search(
        r"error: Process 1 of 2 \(counted from 0; pid \d+\) ended with 1, and all others were ended\.", said
    )
    assert not (tmp_path / "out" / "results.jsonl").exists()
