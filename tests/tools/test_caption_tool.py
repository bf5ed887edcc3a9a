import csv

import pytest
from PIL import Image

from mllm.assistant import Assistant
from mllm.collate import collate
from mllm.data.captions import captioned
from mllm.data.images import read
from mllm.generate import Decoding, answers
from tests.mllm.adapters import saved
from tests.mllm.models import CONNECTORS, NAMES

COLORS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for color in COLORS:
        Image.new("RGB", (20, 30), color).save(tmp_path / "images" / f"{color}.png")
    return tmp_path / "images"


def test_each_image_has_its_caption(tool, tmp_path, folder):
    adapter = saved(tmp_path)
    ended = tool("caption", adapter, folder, "--max_new_tokens", 5, "--csv", tmp_path / "out.csv")
    assert ended.code == 0
    assistant = Assistant(adapter, device="cpu")
    expected = {}
    for path in sorted(folder.iterdir()):
        prompt = assistant.writing.prompt(captioned("x", (path,), "", "", ""))
        batch = collate([[prompt]], assistant.look(read(path))[None], assistant.writing.tokens_per_image, "left")
        expected[str(path)] = answers(assistant.model, batch, Decoding(max_new_tokens=5), assistant.ends)[0]
    assert ended.out == "".join(f"{path}: {text}\n" for path, text in expected.items())
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert {row["image"]: row["caption"] for row in rows} == expected


def test_a_prompt_and_beams_are_taken(tool, tmp_path, folder):
    adapter = saved(tmp_path, CONNECTORS[NAMES.index("qformer_instructed")])
    plain = tool("caption", adapter, folder, "--max_new_tokens", 5)
    asked = tool("caption", adapter, folder, "--max_new_tokens", 5, "--prompt", "a b ?", "--beams", 2)
    assert plain.code == asked.code == 0
    assert plain.out != asked.out


def test_a_bad_image_is_named_and_the_others_go_on(tool, tmp_path, folder):
    (folder / "green.png").write_bytes(b"none")
    ended = tool("caption", saved(tmp_path), folder, "--max_new_tokens", 3, "--csv", tmp_path / "out.csv")
    assert ended.code == 1
    assert ended.err.startswith(f"error: {folder / 'green.png'} could not be read")
    assert len(list(csv.DictReader((tmp_path / "out.csv").open()))) == 2


def test_wrong_input_is_one_sentence(tool, tmp_path, folder, adapter):
    ended = tool("caption", adapter, folder)  # one that classifies
    assert ended.code == 2
    assert ended.err == f"error: {adapter} is an adapter of vpeft; tools/test.py and tools/predict.py use it.\n"
    assert tool("caption", saved(tmp_path), folder, "--beams", 0).code == 2
    (tmp_path / "empty").mkdir()
    assert "holds no images" in tool("caption", saved(tmp_path), tmp_path / "empty").err
