import json
import multiprocessing
import resource
import signal

import pytest

from vpeft.results import append_row, read_rows


def test_rows_come_back_in_order(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    append_row(path, {"id": "a", "accuracy": 0.5, "name": "Größe"})
    append_row(path, {"id": "b", "accuracy": None})
    assert [row["id"] for row in read_rows(path)] == ["a", "b"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_no_file_is_no_rows(tmp_path):
    assert read_rows(tmp_path / "results.jsonl") == []


def test_nan_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match="write None instead"):
        append_row(tmp_path / "results.jsonl", {"accuracy": float("nan")})
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize("torn", ['{"id": "torn", "accu', "null\n", "\xff\xfe\n"])
def test_a_torn_line_costs_only_itself(tmp_path, torn):
    path = tmp_path / "results.jsonl"
    append_row(path, {"id": "before"})
    with path.open("ab") as file:
        file.write(torn.encode("latin-1"))
    append_row(path, {"id": "after"})
    with pytest.warns(UserWarning, match="line 2: not a whole result row"):
        rows = read_rows(path)
    assert [row["id"] for row in rows] == ["before", "after"]


def _append_many(path, name):
    for number in range(30):
        append_row(path, {"id": f"{name}-{number}", "padding": "x" * 5000})


def test_processes_do_not_mix_their_rows(tmp_path):
    path = tmp_path / "results.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append_many, args=(path, name)) for name in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    rows = read_rows(path)
    assert len({row["id"] for row in rows}) == len(rows) == 120


def test_a_full_disk_leaves_the_rows_that_were_there(tmp_path):
    path = tmp_path / "results.jsonl"
    append_row(path, {"id": "before"})
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large|only a part"):
            append_row(path, {"id": "after", "padding": "x" * 5000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [row["id"] for row in read_rows(path)] == ["before"]
