import pytest
import torch

from vpeft.tasks.figures import INK, RIGHT, WRONG, confusion_figure, prediction_grid


def test_grid_titles_tell_right_from_wrong():
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    logits = torch.tensor([[9.0, 0], [9, 0], [0, 9]])
    figure = prediction_grid(images, torch.tensor([0, 1, 1]), logits, ["cat", "a very long name of a dog"], columns=2)
    shown = [(axis.get_title(), axis.title.get_color(), axis.get_xlabel()) for axis in figure.axes]
    assert shown == [
        ("cat (100%)", RIGHT, ""),
        ("cat (100%)", WRONG, "is a very long name …"),
        ("a very long name … (100%)", RIGHT, ""),
        ("", figure.axes[3].title.get_color(), ""),
    ]
    assert not figure.axes[3].axison


def test_confusion_shows_counts_coloured_by_share_of_the_row():
    figure = confusion_figure(torch.tensor([[30, 10], [0, 0]]), ["cat", "dog"], "test: 75.0%")
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.texts] == ["30", "10"]
    assert [text.get_color() for text in axis.texts] == ["white", INK]
    assert axis.images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["cat", "dog"]


@pytest.mark.parametrize("count", [1, 10, 40, 100])
def test_any_number_of_classes_is_drawn(count):
    figure = confusion_figure(torch.eye(count, dtype=torch.int64), [f"class {i}" for i in range(count)], "test")
    figure.draw_without_rendering()
    axis = figure.axes[0]
    for text in (axis.yaxis.label, axis.xaxis.label, axis.title):
        box = text.get_window_extent()
        assert box.x0 >= 0, "nothing is cut off"
        assert box.y0 >= 0
