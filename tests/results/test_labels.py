"""Names beside points: no name over another name, a point or a leader."""

import random
from itertools import combinations

import pytest

from vpeft.results.labels import Box, cut, place, width

AREA, SIZE, RADIUS = Box(40, 40, 430, 290), 11.5, 4.5


def scattered(count, crowded):
    chance = random.Random(count)
    middle, reach = (235, 165), 0.25 if crowded else 1.0
    return [
        (middle[0] + reach * chance.uniform(-180, 180), middle[1] + reach * chance.uniform(-110, 110))
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [2, 8, 25, 60])
@pytest.mark.parametrize("crowded", [False, True])
def test_no_name_covers_another_name_or_a_point(count, crowded):
    points = scattered(count, crowded)
    texts = [f"method_{number}" for number in range(count)]
    labels = place(points, texts, AREA, SIZE, RADIUS)
    boxes = [label.box for label in labels if label]
    assert not any(one.meets(other) for one, other in combinations(boxes, 2))
    assert not any(box.meets(Box(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)) for box in boxes for x, y in points)
    assert all(box.within(AREA) for box in boxes)
    there = [(label.box, text) for label, text in zip(labels, texts, strict=True) if label]
    assert all(box.right - box.left == pytest.approx(width(text, SIZE)) for box, text in there)


def test_names_of_equal_points_stand_around_them():
    first, *rest = place([(235, 165)] * 4, ["adaptformer"] * 4, AREA, SIZE, RADIUS)
    assert first.box.left == 235 + 9
    assert all(rest)


def test_a_name_far_from_its_point_has_a_leader():
    points = scattered(25, crowded=True)
    labels = place(points, ["lora"] * 25, AREA, SIZE, RADIUS)
    far = [label for label in labels if label and label.leader]
    assert far
    for label in far:
        x, y = label.leader
        assert label.box.left <= x <= label.box.right
        assert label.box.top <= y <= label.box.bottom


def test_a_name_without_room_is_left_out():
    assert place([(20, 20)], ["much_too_long_for_this"], Box(0, 0, 40, 40), SIZE, RADIUS) == [None]


def test_a_line_is_avoided_where_there_is_room():
    line = Box(40, 164, 430, 166)
    (label,) = place([(235, 165)], ["lora"], AREA, SIZE, RADIUS, [line])
    assert not label.box.meets(line)


def test_a_long_name_keeps_its_end():
    assert cut("lora (optim.lr 0.001)", 16) == "lora (o… 0.001)".replace("… ", "…r ")
    assert len(cut("lora (optim.lr 0.001)", 16)) == 16
    assert cut("lora", 16) == "lora"
