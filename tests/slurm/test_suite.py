"""A suite's member that runs on several nodes."""

from pathlib import Path

from tests.runs import SGD, tiny_config, write_images
from tests.slurm.cluster import wait
from vpeft.config import to_yaml
from vpeft.slurm import active, members
from vpeft.suite import command, settings
from vpeft.suite.folder import SuiteFolder

ROOT = Path(__file__).parents[2]


def test_a_member_on_two_nodes_is_one_run_with_one_row(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the two nodes are this machine, and have no names of their own
    images = write_images(tmp_path / "images" / "colors")
    file = tmp_path / "lora.yaml"
    file.write_text(to_yaml(tiny_config(images, tmp_path / "out", optim=SGD, epochs=1, strategy="ddp", nodes=2)))
    words = [str(file), "--root", str(images), "--tasks", "colors", "--output", str(tmp_path / "suite")]
    request = settings.parse([*words, "--launcher", "slurm", "--slurm.nodes", "2"])
    assert isinstance(request, settings.Request)
    assert command.run(request) == 0
    logs = tmp_path / "suite" / "slurm"
    wait(lambda: not active(logs, "suite"))
    member = members(logs, "suite")[0]
    assert (member.state, member.runs) == ("completed", 1), (member.folder / "stderr").read_text()
    (row,) = SuiteFolder(request.output).rows("final")
    assert row["device"]["processes"] == 2
    assert len(list(request.output.glob("colors-*"))) == 1
    capsys.readouterr()
    assert command.run(request) == 0
    assert "1 done; 0 to run" in capsys.readouterr().out
