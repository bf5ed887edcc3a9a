"""Labels and outputs of several tasks as pictures."""

import numpy as np
import torch

from vpeft.dense.multitask_pictures import answer, colours, figure


def test_classes_have_the_colours_of_pascal_voc_and_what_is_ignored_its_void():
    shown = colours("semseg", torch.tensor([[0, 1], [15, 255]]), 21)
    assert shown.tolist() == [[[0, 0, 0], [128, 0, 0]], [[192, 128, 128], [224, 224, 192]]]


def test_every_class_of_pascal_has_a_colour_of_its_own():
    assert len(np.unique(colours("semseg", torch.arange(21)[None], 21)[0], axis=0)) == 21


def test_saliency_is_grey_and_normals_are_shares_of_their_axes():
    assert colours("saliency", torch.tensor([[1, 0, 255]]), 1)[0].tolist() == [[255] * 3, [0] * 3, [0] * 3]
    normals = torch.tensor([[0.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])[:, None]  # 3 1 2; the second is no label
    assert colours("normals", normals, 3)[0].tolist() == [[128, 0, 128], [0, 0, 0]]


def test_an_output_is_read_as_its_label_is():
    assert answer("semseg", torch.tensor([[[0.0]], [[2.0]]])).tolist() == [[1]]
    assert answer("saliency", torch.zeros(1, 1, 1)).tolist() == [[0.5]]
    torch.testing.assert_close(answer("normals", torch.full((3, 1, 1), 5.0)), torch.full((3, 1, 1), 3**-0.5))


def test_truth_and_prediction_of_every_task_stand_beside_the_image():
    label, tasks = torch.zeros(4, 4, dtype=torch.long), {"semseg": 21, "saliency": 1}
    one = {
        "image": torch.zeros(3, 4, 4, dtype=torch.uint8),
        "semseg": label,
        "semseg, predicted": torch.zeros(21, 4, 4),
        "saliency": label,
        "saliency, predicted": torch.zeros(1, 4, 4),
    }
    titles = [axis.get_title() for axis in figure([one, one], tasks).axes]
    assert titles == ["image", "semseg", "semseg, predicted", "saliency", "saliency, predicted"] * 2
