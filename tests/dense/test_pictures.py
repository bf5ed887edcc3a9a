"""What TensorBoard holds of a segmentation run: palettes, tables and the parameter split."""

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.data.masked_layouts import write_folder
from vpeft import run
from vpeft.config import parse
from vpeft.data.masks import ClassTable
from vpeft.dense.iou import scores
from vpeft.dense.pictures import colours, figure, iou_table

TABLE = ClassTable(("sky", "road", "tree"), ((0, 0, 255), (128, 128, 128), (0, 255, 0)))
TEXT = """
kind: segmentation
method: {{name: lora, rank: 2}}
auxiliary: {{name: fcn, width: 8, index: 0}}
backbone: test_vit.r160_in1k
pretrained: none
image_size: 32
data: {{task: own, root: {root}, batch_size: 4, short_side: 32}}
optim: {{lr: 1e-2, warmup_epochs: 0}}
train: {{epochs: 1, accelerator: cpu}}
output: {output}
name: run
"""


def test_ids_are_shown_in_the_palette_of_the_data_set_and_what_is_ignored_in_vocs_void():
    shown = colours(torch.tensor([[0, 1], [2, 255]]), TABLE)
    assert shown.tolist() == [[[0, 0, 255], [128, 128, 128]], [[0, 255, 0], [224, 224, 192]]]


def test_the_figure_has_image_truth_and_prediction_side_by_side_and_names_the_colours_that_occur():
    mask, predicted = torch.tensor([[0, 255], [0, 0]]), torch.tensor([[0, 2], [0, 0]])
    made = figure([(torch.zeros(3, 2, 2, dtype=torch.uint8), mask, predicted)], TABLE)
    drawn = [axis for axis in made.axes if axis.images]
    assert [axis.get_title() for axis in drawn] == ["image", "ground truth", "prediction"]
    assert np.array_equal(drawn[2].images[0].get_array(), colours(predicted, TABLE))
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["sky", "tree", "ignored"]


def test_the_table_has_a_line_a_class_and_says_nothing_of_one_that_is_nowhere():
    found = scores(torch.tensor([[3, 0, 0], [4, 1, 0], [5, 0, 0]]))
    assert iou_table(TABLE.names, found).splitlines()[2:] == [
        "| sky | 50.0% | 60.0% |",
        "| road | 0.0% | - |",
        "| tree | - | - |",
        "| **mean** | **25.0%** | **60.0%** |",
    ]


def test_a_run_shows_predictions_classes_and_the_parameter_split(tmp_path):
    root = write_folder(tmp_path / "own", {"train": 4, "val": 1, "test": 2}, ((32, 40),))
    file = tmp_path / "config.yaml"
    file.write_text(TEXT.format(root=root, output=tmp_path / "runs"))
    row = run.train(parse([str(file)]))
    board = EventAccumulator(str(tmp_path / "runs/run/tensorboard"), {"images": 0, "tensors": 0}).Reload()
    (image,) = board.Images("test/predictions")
    assert image.width > 300

    def text(tag: str) -> list[str]:
        (event,) = board.Tensors(f"{tag}/text_summary")
        return event.tensor_proto.string_val[0].decode().splitlines()[2:]

    assert [line.split(" | ")[0] for line in text("test/iou")] == ["| sky", "| road", "| tree", "| **mean**"]
    split = dict(line.strip("| ").split(" | ") for line in text("parameters"))
    counts = {part: int(number.replace(",", "")) for part, number in split.items()}
    assert counts == {name: row["parameters"][name] for name in ("method", "neck", "head", "frozen")} | {"backbone": 0}
    assert counts["method"] > 0


@pytest.mark.parametrize("count", [0, 1])
def test_a_figure_of_few_images_is_drawn(count):
    one = (torch.zeros(3, 2, 2, dtype=torch.uint8), torch.full((2, 2), 255), torch.zeros(2, 2, dtype=torch.long))
    assert figure([one] * count, TABLE).axes
