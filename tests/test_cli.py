"""How a tool ends."""

import pytest

from vpeft import cli
from vpeft.nearest import did_you_mean


def end(main, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    return ended.value.code


def raising(error):
    """A main that fails as if the package's own code had raised."""
    source = "def main(argv):\n    raise error\n"
    module = {"error": error}
    exec(compile(source, cli.__file__, "exec"), module)
    return module["main"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("wrong value"), 2),
        (FileNotFoundError("no file"), 2),
        (TypeError("no such backbone"), 2),
        (RuntimeError("no network"), 1),
        (FloatingPointError("no number"), 1),
        (OSError("disk full"), 1),
    ],
)
def test_an_error_of_the_package_is_its_sentence_and_a_code(error, code, monkeypatch, capsys):
    assert end(raising(error), monkeypatch) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_file_the_system_refuses_is_a_sentence(monkeypatch, capsys, tmp_path):
    assert end(lambda argv: open(tmp_path / "no").close(), monkeypatch) == 2
    assert capsys.readouterr().err == f"error: [Errno 2] No such file or directory: '{tmp_path / 'no'}'\n"


def test_anything_else_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool"])
    with pytest.raises(ValueError, match="not enough values"):
        cli.run(lambda argv: _unpack())


def _unpack():
    a, b = (1,)
    return a + b


def test_ctrl_c_is_130(monkeypatch, capsys):
    assert end(raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_no_error_is_the_code_of_main(monkeypatch):
    assert end(lambda argv: None, monkeypatch) == 0
    assert end(lambda argv: 1, monkeypatch) == 1


def test_a_near_name_is_offered_else_all_of_them():
    assert did_you_mean("promts", ["deep", "prompts"]) == "did you mean 'prompts'?"
    assert did_you_mean("tsk", ["task"], "data.") == "did you mean 'data.task'?"
    assert did_you_mean("x", ["deep", "prompts"]) == "there is deep, prompts"
    assert did_you_mean("x", []) == "there is none"
