"""Training that falls apart ends with a sentence, keeps the last good checkpoint and gives no row; others go on."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.packed.runs import member, prepare
from tests.runs import tiny_config, write_images
from tests.segmentation_runs import own_data, writer
from tests.suite.conftest import FILE
from tests.test_multitask_run import MTLORA, TEXT
from tests.test_search import NOAH_SPEC, SETTINGS
from vpeft import search
from vpeft.config import parse, to_yaml
from vpeft.packed import train_together
from vpeft.run import train
from vpeft.suite import code, plan, settings, work
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.states import states

LOSS = r"The loss is not a finite number in optimiser step \d+ of \d+ \(epoch \d\), at a learning rate of .*Try a lower"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "colors")


def finite(file):
    state = torch.load(file, weights_only=True)
    return all(tensor.isfinite().all() for tensor in state["state_dict"].values())


def test_a_run_of_classification(tool, images, tmp_path):
    config = tiny_config(images, tmp_path / "out")
    config.optim.lr, config.optim.warmup_epochs = 1e30, 2.5
    config.optim.name = "sgd"
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    ended = tool("train", tmp_path / "run.yaml")
    assert ended.code == 1
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert "not a finite number in optimiser step " in line
    assert "at a learning rate of " in line
    assert line.endswith(
        "Try a lower optim.lr, a longer optim.warmup_epochs, --train.clip 1.0, or --train.precision 32-true."
    )
    assert not (tmp_path / "out" / "results.jsonl").exists()
    assert not (tmp_path / "out" / "run" / "adapter.safetensors").exists()
    assert not (tmp_path / "out" / "run" / "last.ckpt").exists() or finite(tmp_path / "out" / "run" / "last.ckpt")


def test_a_run_of_segmentation(tmp_path):
    config = parse([writer(tmp_path, own_data(tmp_path))(), "--optim.lr", "1e30", "--optim.warmup_epochs", "0"])
    with pytest.raises(FloatingPointError, match=rf"{LOSS}|Trained weights .* are not finite numbers after step"):
        train(config)
    assert not (tmp_path / "runs" / "results.jsonl").exists()


def test_a_run_of_several_tasks(tmp_path):
    (tmp_path / "run.yaml").write_text(TEXT.format(method=MTLORA, output=tmp_path / "runs"))
    config = parse([str(tmp_path / "run.yaml"), "--optim.lr", "1e30", "--optim.warmup_epochs", "0"])
    with pytest.raises(FloatingPointError, match=rf"{LOSS}|Trained weights .* are not finite numbers after step"):
        train(config)
    assert not (tmp_path / "runs" / "results.jsonl").exists()


def test_weights_that_are_no_numbers_are_found_in_the_first_step(tmp_path):
    prepare(tmp_path)
    state = load_file(tmp_path / "weights.safetensors")
    state["blocks.0.mlp.fc2.bias"][0] = float("nan")
    save_file(state, tmp_path / "weights.safetensors")
    with pytest.raises(FloatingPointError, match="not a finite number in optimiser step 1 of"):
        train(member(tmp_path, tmp_path / "out", {"name": "ssf"}, "colors", 0, 0.01))


def test_a_supernet_gives_no_subnet(images, tmp_path):
    settings = type(SETTINGS)(**{**vars(SETTINGS), "lr": 1e30})
    config = tiny_config(images, tmp_path, NOAH_SPEC, epochs=2)
    with pytest.raises(FloatingPointError, match=rf"{LOSS}|Trained weights"):
        search.search(config, settings)
    assert not list(tmp_path.glob("*/subnet.yaml"))
    assert not list(tmp_path.glob("*/result.json"))


def test_one_of_a_pack_in_a_suite(tmp_path):
    """A sweep marks it as diverged, which is a result; its neighbour in the pack is what it is alone."""
    prepare(tmp_path)
    text = FILE.format(method="ssf", lr=0.01, epochs=2).replace("none", str(tmp_path / "weights.safetensors"))
    (tmp_path / "ssf.yaml").write_text(text)
    given = ["--root", str(tmp_path / "colors"), "--tasks", "colors", "--sweep", "lr=0.005,1e30", "--optim.name", "sgd"]
    found = {}
    for pack in ("1", "2"):
        request = settings.parse([str(tmp_path / "ssf.yaml"), *given, "--output", str(tmp_path / pack), "--pack", pack])
        members = plan.build(request)[:2]  # type: ignore[arg-type]
        folder = SuiteFolder(tmp_path / pack)
        for item in folder.add(members, plan.items(members, int(pack))):
            work.work(folder, item, lambda *_: None)
        assert "not a finite number" in folder.note(members[1].id)["error"]
        (found[pack],) = folder.rows("tuning")
        found_states = states(folder, members, code.identity())
        assert [found_states[one.id].kind for one in members] == ["done", "diverged"]
    assert found["2"]["val"]["loss"] == pytest.approx(found["1"]["val"]["loss"], abs=1e-5)


def test_both_of_a_pack(tmp_path):
    prepare(tmp_path)
    configs = [member(tmp_path, tmp_path / "out", {"name": "ssf"}, "colors", seed, 1e30) for seed in (0, 1)]
    for outcome in train_together(configs):
        assert isinstance(outcome, FloatingPointError)
    assert not (tmp_path / "out" / "results.jsonl").exists()
