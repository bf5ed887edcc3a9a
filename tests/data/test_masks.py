from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vpeft.data.images import UnreadableImage
from vpeft.data.masks import ClassTable, ade20k, read_classes, read_mask, voc_colour

PLAIN = ClassTable.of(("sky", "road", "tree"))
COLOURED = ClassTable(("sky", "road"), ((0, 0, 255), (128, 128, 128)))


def write(path: Path, pixels: list[list[int]] | np.ndarray, kind: type = np.uint8) -> Path:
    Image.fromarray(np.array(pixels, kind)).save(path)
    return path


def test_ids_are_read_and_255_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0, 1], [2, 255]])
    assert read_mask(path, PLAIN).tolist() == [[0, 1], [2, 255]]


def test_the_indices_of_a_palette_image_are_its_ids(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 2], [1, 255]], np.uint8))
    image.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
    image.save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", PLAIN).tolist() == [[0, 2], [1, 255]]


def test_zero_is_ignored_and_ids_move_down_where_the_label_zero_is_reduced(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0, 1], [3, 255]])
    assert read_mask(path, PLAIN, reduce_zero_label=True).tolist() == [[255, 0], [2, 255]]


@pytest.mark.parametrize(
    ("ids", "reduced", "said"),
    [
        ([[0, 3]], False, "the id 3, .*3 classes: ids 0 to 2"),
        ([[0, 4]], True, "the id 4, .*ids 1 to 3, and 255 .* and 0"),
    ],
)
def test_an_id_outside_the_table_is_named_with_its_path(
    tmp_path: Path, ids: list[list[int]], reduced: bool, said: str
) -> None:
    path = write(tmp_path / "m.png", ids)
    with pytest.raises(ValueError, match=rf"{path} has {said}"):
        read_mask(path, PLAIN, reduced)


def test_rgb_is_refused_where_ids_are_due(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match=rf"{path} is an RGB image where class ids are due.*classes\.txt"):
        read_mask(path, PLAIN)


def test_rgb_in_the_colours_of_the_table_becomes_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", np.array([[[128, 128, 128], [0, 0, 255]], [[0, 0, 0], [255, 255, 255]]]))
    assert read_mask(path, COLOURED).tolist() == [[1, 0], [255, 255]]
    assert read_mask(path, COLOURED, reduce_zero_label=True).tolist() == [[1, 0], [255, 255]]
    path = write(tmp_path / "n.png", np.full((2, 2, 3), 9))
    with pytest.raises(ValueError, match=rf"{path} has the colour #090909, which no class has"):
        read_mask(path, COLOURED)
    twice = ClassTable(("a", "b"), ((1, 1, 1), (1, 1, 1)))
    with pytest.raises(ValueError, match="two classes of its table have one colour"):
        read_mask(path, twice)


def test_16_bits_are_read_and_65535_is_ignored(tmp_path: Path) -> None:
    many = ClassTable.of([f"class {i}" for i in range(847)])
    for name in ("m.png", "m.tif"):
        path = write(tmp_path / name, [[0, 255], [846, 65535]], np.uint16)
        assert read_mask(path, many).tolist() == [[0, 255], [846, 65535]]
        assert read_mask(path, many).dtype == np.uint16
    assert many.ignore == 65535
    few = write(tmp_path / "few.png", [[0, 2], [255, 65535]], np.uint16)
    assert read_mask(few, PLAIN).tolist() == [[0, 2], [255, 255]]
    with pytest.raises(ValueError, match=rf"{path} has the id 846"):
        read_mask(path, PLAIN)


def test_8_bits_are_refused_where_255_is_a_class(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0]])
    with pytest.raises(ValueError, match=rf"{path} has 8 bits a pixel, but of 300 classes 255 is one; save 16 bits"):
        read_mask(path, ClassTable.of([f"class {i}" for i in range(300)]))


def test_what_is_no_mask_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"m\.png could not be read as a mask"):
        read_mask(tmp_path / "m.png", PLAIN)
    path = write(tmp_path / "m.tif", [[0.5]], np.float32)
    with pytest.raises(ValueError, match=r"m\.tif is no mask: its pixels are of the kind F"):
        read_mask(path, PLAIN)


def test_a_table_has_names_and_if_given_colours(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("traffic light #faaa1e\n\nC# book, manual #00ff00\n", "utf-8")
    table = read_classes(path)
    assert table.names == ("traffic light", "C# book, manual")
    assert (table.colours, table.coloured) == (((250, 170, 30), (0, 255, 0)), True)
    path.write_text("sky\nroad\n")
    assert read_classes(path) == ClassTable(("sky", "road"), (voc_colour(1), voc_colour(2)), coloured=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "The list of classes is empty"),
        ("sky\nroad\nsky\n", "The class 'sky' is named twice, for ids 0 and 2"),
        ("sky #0000ff\nroad\n", "Class 'road' has no colour and others have"),
        ("sky #0000ff\n#00ff00\n", "Class 1 has no name"),
    ],
)
def test_a_table_that_cannot_be_one_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.txt: {said}"):
        read_classes(path)
    with pytest.raises(ValueError, match=r"absent\.txt is missing; write one class name a line"):
        read_classes(tmp_path / "absent.txt")


def test_the_table_of_ade20k_is_the_official_one() -> None:
    table = ade20k()
    assert (len(table.names), table.ignore) == (150, 255)
    assert [table.names[i] for i in (0, 7, 149)] == ["wall", "bed", "flag"]
    assert [table.colours[i] for i in (0, 1, 149)] == [(120, 120, 120), (180, 120, 120), (92, 0, 255)]


def test_the_colours_of_voc_are_those_published() -> None:
    assert [voc_colour(i) for i in (0, 1, 15, 20)] == [(0, 0, 0), (128, 0, 0), (192, 128, 128), (0, 64, 128)]
