import json

import pytest
from PIL import Image

from mllm.assistant import Assistant
from mllm.templates import find
from tests.mllm.adapters import saved
from vpeft.results import read_rows


@pytest.fixture
def talks(tmp_path):
    """A model, and questions to which its own answers are right, but for the first two."""
    adapter = saved(tmp_path)
    records = []
    for i in range(6):
        Image.new("RGB", (8, 8), (40 * i, 200 - 30 * i, 0)).save(tmp_path / f"{i}.png")
        turns = [{"from": "human", "value": "<image> b c ?"}, {"from": "gpt", "value": "z"}]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    (tmp_path / "talks.json").write_text(json.dumps(records))
    return adapter, tmp_path


def words(folder):
    return "--data.root", folder, "--data.files.test", "[talks.json]", "--output", folder / "out", "--device", "cpu"


def test_a_row_is_written_and_shown(tool, talks):
    adapter, folder = talks
    first = tool("evaluate", adapter, *words(folder), "--answers", folder / "a.jsonl", "--max_new_tokens", 3)
    assert first.code == 0
    said = [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()]
    assert len(said) == 6
    records = json.loads((folder / "talks.json").read_text())
    for record, line in list(zip(records, said, strict=True))[2:]:
        record["conversations"][1]["value"] = line["answer"]
    (folder / "talks.json").write_text(json.dumps(records))
    second = tool("evaluate", adapter, *words(folder), "--controls", "--max_new_tokens", 3, "--data.template", "bare")
    assert second.code == 0
    before, row = read_rows(folder / "out" / "results.jsonl")
    assert (before["test"]["score"], row["test"]["score"]) == (0, 4 / 6)
    assert {"shuffled", "blank", "loss", "samples", "part", "card"} <= row["test"].keys()
    assert row["test"]["loss"] > 0
    assert row["test"]["card"]["prompt"]["example"] == "<image>b c ?"
    assert row["adapter"] | {"sha256": ""} == {"file": str(adapter), "sha256": "", "run": "run1", "task": "talks"}
    assert (row["kind"], row["task"], row["connector"]["name"]) == ("mllm", "talks", "mlp")
    assert before["id"] != row["id"]
    assert "score" in second.out
    assert "0.6667" in second.out
    assert "6 of 6 samples, template bare, greedy, at most 3 tokens" in second.out
    assert str(folder / "out" / "results.jsonl") in second.out


def test_the_loss_alone_generates_nothing(tool, talks, monkeypatch):
    adapter, folder = talks
    monkeypatch.setattr("mllm.evaluation.answers", lambda *_: pytest.fail("nothing was asked for"))
    assert tool("evaluate", adapter, *words(folder), "--score", "none").code == 0
    (row,) = read_rows(folder / "out" / "results.jsonl")
    assert row["test"].keys() == {"loss", "part"}
    tool("evaluate", adapter, *words(folder), "--score", "none", "--samples", 2)
    assert read_rows(folder / "out" / "results.jsonl")[1]["test"]["loss"] != row["test"]["loss"], "of these two alone"


def test_the_preparation_is_that_of_training_unless_it_is_changed(tool, talks):
    adapter, folder = talks
    ended = tool("evaluate", adapter, *words(folder), "--data.template", "llava_v1", "--data.system", "a b .")
    assert ended.code == 0
    (row,) = read_rows(folder / "out" / "results.jsonl")
    assert row["test"]["card"]["prompt"]["example"].startswith("a b . USER: <image>")
    prepared = Assistant(adapter).manifest["preparation"]
    written = {"template": "llava_v1", "system": "a b .", "template_fields": vars(find("llava_v1", "a b ."))}
    assert row["preprocessing"] == prepared | written


def test_wrong_input_is_one_sentence(tool, talks):
    adapter, folder = talks

    def error(*more):
        ended = tool("evaluate", adapter, *more)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        return ended.err

    assert "talks is read from files; give --data.root DIR and --data.files.test '[NAME]'" in error()
    assert "--data.aspect cannot be changed for a test" in error("--data.aspect", "crop")
    assert "--optim.lr cannot be changed for a test" in error("--optim.lr", "1")
    assert "argument --score: invalid choice: 'accuracy'" in error("--score", "accuracy")
    assert "--score none generates no answers" in error("--score", "none", "--controls")
    assert "one adapter is expected, and 'more' is left over" in error("more")
    assert "evaluation.score yes_no needs yes or no as the right answer, and question 1 has 'z'" in error(
        *words(folder), "--score", "yes_no"
    )
    assert "talks has no part 'tests'" in error(*words(folder), "--part", "tests")
    assert "data.template 'lava_v1' is not known; did you mean 'llava_v1'?" in error(
        *words(folder), "--data.template", "lava_v1"
    )
    assert not (folder / "out").exists()
