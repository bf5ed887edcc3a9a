import csv

import numpy as np
import torch
from PIL import Image

from tests.adapters import save
from vpeft.checkpoint import load_adapter


def test_the_classes_come_with_their_probabilities(tool, adapter, images, tmp_path):
    file = images / "red" / "0.png"
    ended = tool("predict", adapter, file, "--csv", tmp_path / "out.csv")
    assert ended.code == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    pixels = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 255
    tuned, manifest = load_adapter(adapter)
    expected = tuned((pixels - 0.5) / 0.5).softmax(dim=1)[0]
    assert [row["rank"] for row in rows] == ["1", "2", "3"], "five are asked for by default and three exist"
    for row in rows:
        assert row["path"] == str(file)
        assert abs(float(row["probability"]) - expected[manifest["classes"].index(row["class"])].item()) < 1e-4
        assert f"{float(row['probability']):.2%}" in ended.out
    assert float(rows[0]["probability"]) == max(float(row["probability"]) for row in rows)


def test_a_folder_is_searched_in_order(tool, adapter, images, tmp_path):
    (images / "notes.txt").write_text("no image")
    assert tool("predict", adapter, images, "--top", 1, "--csv", tmp_path / "out.csv").code == 0
    paths = [row["path"] for row in csv.DictReader((tmp_path / "out.csv").open())]
    assert paths == [str(path) for path in sorted(images.rglob("*.png"))]


def test_a_bad_image_is_named_and_the_others_go_on(tool, adapter, images, tmp_path):
    bad, good = images / "blue" / "0.png", images / "red" / "0.png"
    bad.write_bytes(good.read_bytes()[:100])
    ended = tool("predict", adapter, bad, images / "no.png", good, "--csv", tmp_path / "out.csv")
    assert ended.code == 1
    lines = ended.err.splitlines()
    assert [line.split(" could")[0] for line in lines] == [f"error: {bad}", f"error: {images / 'no.png'}"]
    assert "data.on_error" not in ended.err, "there is no such option here"
    assert {row["path"] for row in csv.DictReader((tmp_path / "out.csv").open())} == {str(good)}


def test_wrong_input_is_one_sentence(tool, adapter, images, tmp_path):
    def error(*words):
        ended = tool("predict", *words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        return ended.err

    assert error(adapter) == (
        "error: command line: the following arguments are required: IMAGE; see tools/predict.py --help\n"
    )
    assert "argument --top: a whole number of at least 1 is expected, not '0'" in error(adapter, images, "--top", 0)
    assert "unrecognized arguments: --topp 3" in error(adapter, images, "--topp", 3)
    (tmp_path / "empty").mkdir()
    assert f"error: {tmp_path / 'empty'} holds no images; they are found by their suffix" in error(
        adapter, tmp_path / "empty"
    )
    assert "error: There is no device 'gpu0' here; give --device cpu" in error(adapter, images, "--device", "gpu0")
    assert f"did you mean '{adapter}'?" in error(adapter.with_name("adapters.safetensors"), images)
    adapter.write_bytes(adapter.read_bytes()[:-1])
    assert f"error: {adapter} is damaged" in error(adapter, images)


def test_a_table_that_cannot_be_written_is_a_failure(tool, adapter, images, tmp_path):
    (tmp_path / "out.csv").mkdir()
    ended = tool("predict", adapter, images / "red" / "0.png", "--csv", tmp_path / "out.csv")
    assert ended.code == 1
    assert f"error: {tmp_path / 'out.csv'} could not be written" in ended.err


def test_names_are_printed_as_they_are(tool, adapter, images):
    save(adapter, classes=("[blue]", "a [/b]", "red"))
    file = (images / "red").rename(images / "[red]") / "0.png"
    ended = tool("predict", adapter, file)
    assert all(name in ended.out for name in ("[blue]", "a [/b]", "[red]/0.png"))
