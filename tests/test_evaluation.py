import pytest

from tests.adapters import make, save
from tests.runs import write_images
from vpeft.checkpoint import save_adapter
from vpeft.data.tables import VTAB
from vpeft.evaluation import open_data
from vpeft.predict import Classifier

TASK = "eurosat"


def layout(root, *lists):
    """A task in VTAB-1k layout with only some of its lists."""
    images = write_images(root / TASK / "images", 2)
    for stem, folder in zip(lists, sorted(images.iterdir()), strict=True):
        lines = [f"images/{folder.name}/{i}.png {i}" for i in range(2)]
        (root / TASK / f"{stem}.txt").write_text("\n".join(lines))
    return root


def classifier(path, **changed):
    tuned, manifest = make(classes=tuple(VTAB[TASK].classes))
    save_adapter(path, tuned, manifest | {"task": TASK} | changed)
    return Classifier(path, device="cpu")


@pytest.mark.filterwarnings("ignore:.*lists 2 images")
def test_the_lists_are_those_of_the_split_that_was_trained_on(tmp_path):
    root, path = layout(tmp_path / "vtab", "train800", "val200", "test"), tmp_path / "adapter.safetensors"
    overrides = [("data.root", str(root))]
    data = open_data(classifier(path, split="train800"), overrides, str(path))
    assert len(data.files("test")) == 2
    with pytest.raises(ValueError, match=r"train800val200.txt is missing"):
        open_data(classifier(path, split="train800val200"), overrides, str(path))
    with pytest.raises(ValueError, match=r"train800val200.txt is missing"):
        open_data(classifier(path), overrides, str(path))  # an older adapter, which does not say


def test_an_adapter_without_a_split_is_tested_as_before(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save(path)
    overrides = [("data.root", str(write_images(tmp_path / "images", 5))), ("data.format", "folder")]
    data = open_data(Classifier(path, device="cpu"), overrides, str(path))
    assert data.provenance["counts"] == {"train": 12, "val": 0, "test": 3}
