from tests.results.rows import whole
from vpeft.results import append_row


def test_a_report_in_every_form(tool, tmp_path):
    for one in whole():
        append_row(tmp_path / "results.jsonl", one)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("markdown", "csv", "latex")}
    ended = tool("report", tmp_path, *(word for kind, file in files.items() for word in (f"--{kind}", file)))
    assert ended.code == 0, ended.err
    assert "protocol adapter-plus" in ended.out
    assert "| lora |" in files["markdown"].read_text()
    assert files["csv"].read_text().startswith("kind,suite,protocol,")
    assert r"\toprule" in files["latex"].read_text()


def test_filters_are_comma_separated(tool, tmp_path):
    for one in whole():
        append_row(tmp_path / "results.jsonl", one)
    ended = tool("report", tmp_path, "--task", "svhn, dtd", "--method", "lora")
    assert "19 tasks" not in ended.out
    assert "svhn" in ended.out
    assert "cifar100" not in ended.out


def test_wrong_input_is_one_sentence(tool, tmp_path):
    ended = tool("report", tmp_path)
    assert (ended.code, ended.err) == (2, f"error: {tmp_path} holds no results.jsonl, nor does a folder below it.\n")
