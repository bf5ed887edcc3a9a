import json

from tests.results.rows import whole
from tests.results.suites import suite
from vpeft.results import append_row


def test_a_report_in_every_form(tool, tmp_path):
    for one in whole():
        append_row(tmp_path / "results.jsonl", one)
    files = {kind: tmp_path / f"report.{kind}" for kind in ("html", "markdown", "csv", "latex")}
    ended = tool("report", tmp_path, *(word for kind, file in files.items() for word in (f"--{kind}", file)))
    assert ended.code == 0, ended.err
    assert "protocol adapter-plus" in ended.out
    assert "| lora |" in files["markdown"].read_text()
    assert files["csv"].read_text().startswith("kind,suite,protocol,")
    assert r"\toprule" in files["latex"].read_text()
    assert f"python tools/report.py {tmp_path} --html {files['html']} " in files["html"].read_text()


def test_figures_are_files_that_the_markdown_shows(tool, tmp_path):
    lines = "".join(f"{json.dumps(one)}\n" for one in suite(seeds=(1, 2)))
    (tmp_path / "results.jsonl").write_text(lines)
    ended = tool("report", tmp_path, "--markdown", tmp_path / "report.md", "--figures", tmp_path / "figures")
    assert ended.code == 0, ended.err
    drawn = sorted(file.name for file in (tmp_path / "figures").iterdir())
    assert drawn == ["1-means.svg", "1-memory-1.svg", "1-parameters.svg", "1-ranks.svg", "1-time-1.svg"]
    assert all(f"](figures/{name})" in (tmp_path / "report.md").read_text() for name in drawn)


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


def test_rows_are_not_written_over(tool, tmp_path):
    rows = tmp_path / "results.jsonl"
    append_row(rows, whole()[0])
    before = rows.read_bytes()
    for words, told in (
        ((rows, "--csv", rows), f"--csv {rows} would overwrite result rows; give a file of its own"),
        ((tmp_path, "--html", tmp_path), f"--html {tmp_path} is a folder; give a file"),
        ((tmp_path, "--html", tmp_path / "a", "--csv", tmp_path / "a"), "--html and --csv are both"),
    ):
        ended = tool("report", *words)
        assert ended.code == 2
        assert told in ended.err
    assert rows.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["results.jsonl"]


def test_a_folder_for_the_report_is_made(tool, tmp_path):
    append_row(tmp_path / "results.jsonl", whole()[0])
    ended = tool("report", tmp_path, "--csv", tmp_path / "new" / "report.csv")
    assert ended.code == 0, ended.err
    assert (tmp_path / "new" / "report.csv").read_text().startswith("kind,")
