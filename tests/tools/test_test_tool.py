import torch

from tests.adapters import save
from tests.runs import write_images
from vpeft.predict import Classifier, find_images


def split(root):
    for part in ("train", "test"):
        write_images(root / part, 4)
    return root


def test_accuracy_is_measured_on_the_test_split(tool, adapter, tmp_path):
    root = split(tmp_path / "data")
    ended = tool("test", adapter, "--data.root", root, "--data.format=folder")
    assert ended.code == 0, ended.err
    model, files = Classifier(adapter), find_images([root / "test"])
    guesses = model(torch.stack([model.load(file) for file in files])).argmax(dim=1).tolist()
    right = [model.classes[guess] == file.parent.name for guess, file in zip(guesses, files, strict=True)]
    assert f"top-1 {sum(right) / 12:.2%}" in ended.out
    rows = {line.split()[1]: line.split()[3] for line in ended.out.splitlines() if line.startswith("│")}
    assert rows == {"blue": "4", "green": "4", "red": "4", "all": "12"}


def test_wrong_input_is_one_sentence(tool, adapter, tmp_path):
    def error(*words):
        ended = tool("test", *words)
        assert ended.code == 2
        assert "Traceback" not in ended.err
        return ended.err

    root = split(tmp_path / "data")
    assert "--data.resize cannot be changed for a test; there is data.task, data.root" in error(
        adapter, "--data.resize", "crop"
    )
    assert "--data.tsk cannot be changed for a test; did you mean 'data.task'?" in error(adapter, "--data.tsk", "x")
    assert "data.workers must be a whole number, not 'x'" in error(adapter, "--data.workers", "x")
    assert "--data.root needs a value" in error(adapter, "--data.root")
    assert "one adapter is expected, and 'b' is left over" in error(adapter, "b")
    assert "data.task 'colors' is not known" in error(adapter)
    save(adapter, classes=("blue", "red"))
    assert (
        f"{adapter} knows 2 classes (blue, red), and the data {root} has 3 classes (blue, green, red); give --data.task"
        in error(adapter, "--data.root", root, "--data.format", "folder")
    )
