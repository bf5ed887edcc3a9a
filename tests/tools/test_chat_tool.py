import io
import sys

import pytest
from PIL import Image

from tests.mllm.adapters import saved


@pytest.fixture
def talker(tmp_path):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "red.png")
    return saved(tmp_path), tmp_path / "red.png"


def test_one_question_is_answered_on_stdout_alone(tool, talker):
    adapter, image = talker
    ended = tool("chat", adapter, "--image", image, "--ask", "a b ?", "--max_new_tokens", 4)
    assert ended.code == 0
    assert ended.err == ""
    assert ended.out.count("\n") == 1
    assert 1 <= len(ended.out.split()) <= 4
    twice = tool("chat", adapter, "--image", image, "--image", image, "--ask", "a <image> b <image> ?")
    assert twice.code == 0
    assert tool("chat", adapter, "--ask", "a b ?").code == 0, "text alone is answered too"


def test_lines_of_stdin_are_answered_until_it_ends(tool, talker, monkeypatch):
    adapter, image = talker
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"a ?\n/image {image}\nb ?\n/image no.png\n/quit\nc ?\n"))
    ended = tool("chat", adapter, "--max_new_tokens", 4)
    assert ended.code == 0
    assert ended.out.count("\n") == 2
    assert ended.err.startswith("error: no.png could not be read")
    assert ended.err.count("\n") == 1


def test_drawn_words_depend_on_the_seed(tool, talker):
    adapter, _ = talker
    said = [tool("chat", adapter, "--ask", "a ?", "--temperature", 5, "--seed", seed).out for seed in (0, 0, 1)]
    assert said[0] == said[1] != said[2]


def test_wrong_input_is_one_sentence(tool, talker, tmp_path):
    adapter, image = talker

    def error(*words):
        ended = tool("chat", *words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        return ended.err

    assert "error: command line: the following arguments are required: ADAPTER" in error()
    assert f"error: {tmp_path / 'no.png'} could not be read" in error(adapter, "--image", tmp_path / "no.png")
    assert "error: decoding: temperature is 0.0" in error(adapter, "--temperature", 0)
    assert f"error: There is no adapter {tmp_path / 'adapters.safetensors'}; did you mean" in error(
        tmp_path / "adapters.safetensors"
    )
    assert "has 2 times <image> and 1 image; each needs the other" in error(
        adapter, "--image", image, "--ask", "<image> <image> a"
    )
    assert "its language model" in error(adapter, "--language", f"hf:{tmp_path}")
