"""How a tool ends."""

import errno
import importlib.util

import pytest
import torch
from torch._utils import ExceptionWrapper

from vpeft import cli
from vpeft.nearest import did_you_mean


def end(main, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tool"])
    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    return ended.value.code


OWN = """
def raising(error):
    if error:
        raise (
            error
        )

def asserting(argv):
    assert not argv, "the rank is positive"

def unpacking(argv):
    a, b = argv

def calling(argv):
    raising()

def multiplying(matrix):
    return matrix @ matrix
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module that counts as one of the package's."""
    file = tmp_path / "own.py"
    file.write_text(OWN)
    monkeypatch.setattr(cli, "_PACKAGES", (tmp_path,))
    spec = importlib.util.spec_from_file_location("own", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
def test_an_error_of_the_package_is_its_sentence_and_a_code(own, error, code, monkeypatch, capsys):
    assert end(lambda argv: own.raising(error), monkeypatch) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_a_file_the_system_refuses_is_a_sentence(monkeypatch, capsys, tmp_path):
    assert end(lambda argv: open(tmp_path / "no").close(), monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'no'}: No such file or directory. Check the path.\n"


def test_what_names_no_file_is_about_one_only_where_a_disk_says_it():
    assert cli.sentence(OSError(errno.ENOSPC, "No space left")).startswith(
        "A file could not be written: No space left. "
    )
    assert cli.sentence(PermissionError(errno.EACCES, "Permission denied")) is None, "it may be a port"


def test_an_error_of_the_real_package_is_its_sentence(monkeypatch, capsys):
    assert end(lambda argv: cli.Parser("tools/x.py").error("wrong"), monkeypatch) == 2
    assert capsys.readouterr().err == "error: command line: wrong; see tools/x.py --help\n"


def test_an_error_of_mllm_is_its_sentence(monkeypatch, capsys):
    from mllm.scoring import SCORERS

    assert end(lambda argv: SCORERS["exact"]([], []), monkeypatch) == 2
    assert capsys.readouterr().err.startswith("error: There is no answer to score")


BUGS = {
    "a failed assert": (AssertionError, lambda own: own.asserting([1])),
    "a raised AssertionError": (AssertionError, lambda own: own.raising(AssertionError("never"))),
    "an error without a message": (ValueError, lambda own: own.raising(ValueError())),
    "another kind of error": (KeyError, lambda own: own.raising(KeyError("name"))),
    "a failed unpacking": (ValueError, lambda own: own.unpacking([1])),
    "a wrong call": (TypeError, lambda own: own.calling([])),
    "an error of torch's on our line": (RuntimeError, lambda own: own.multiplying(torch.ones(2, 3))),
    "an error of another package": (ValueError, lambda own: int("x")),
}


@pytest.mark.parametrize(("kind", "bug"), BUGS.values(), ids=list(BUGS))
def test_a_bug_keeps_its_traceback(own, kind, bug, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tool"])
    with pytest.raises(kind):
        cli.run(lambda argv: bug(own))
    assert not capsys.readouterr().err


def test_ctrl_c_is_130(own, monkeypatch, capsys):
    assert end(lambda argv: own.raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_no_error_is_the_code_of_main(monkeypatch):
    assert end(lambda argv: None, monkeypatch) == 0
    assert end(lambda argv: 1, monkeypatch) == 1


def test_a_near_name_is_offered_else_all_of_them():
    assert did_you_mean("promts", ["deep", "prompts"]) == "did you mean 'prompts'?"
    assert did_you_mean("tsk", ["task"], "data.") == "did you mean 'data.task'?"
    assert did_you_mean("x", ["deep", "prompts"]) == "there is deep, prompts"
    assert did_you_mean("x", []) == "there is none"


class _Broken(torch.utils.data.Dataset):
    def __init__(self, raising, error):
        self.raising, self.error = raising, error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.raising(self.error)


@pytest.mark.parametrize(("inside", "code"), [(True, 2), (False, None)])
def test_what_a_loaders_worker_says_is_a_sentence_too(own, monkeypatch, capsys, inside, code):
    """torch hands on the worker's traceback as the message."""
    monkeypatch.setattr(cli, "_PACKAGES", (cli._PACKAGES if inside else ()))
    loader = torch.utils.data.DataLoader(
        _Broken(own.raising, ValueError("img.png is missing; restore it.")), num_workers=1
    )
    if inside:
        assert end(lambda argv: list(loader), monkeypatch) == code
        assert capsys.readouterr().err == "error: img.png is missing; restore it.\n"
    else:
        with pytest.raises(ValueError, match="Original Traceback"):
            end(lambda argv: list(loader), monkeypatch)


def handed_on(call):
    """Raise what a loader's worker hands on of an error, as torch does."""
    try:
        call()
    except Exception:
        ExceptionWrapper(where="in DataLoader worker process 0").reraise()


@pytest.mark.parametrize("bug", ["a failed unpacking", "an error of torch's on our line"])
def test_a_bug_in_a_worker_keeps_its_traceback(own, bug, monkeypatch):
    kind, call = BUGS[bug]
    monkeypatch.setattr("sys.argv", ["tool"])
    with pytest.raises(kind, match="Original Traceback"):
        cli.run(lambda argv: handed_on(lambda: call(own)))


def test_of_an_error_in_a_worker_that_followed_another_the_last_is_said(own, monkeypatch, capsys):
    def fails():
        try:
            own.raising(ValueError("the first"))
        except ValueError:
            own.raising(ValueError("img.png is damaged; restore it."))

    assert end(lambda argv: handed_on(fails), monkeypatch) == 2
    assert capsys.readouterr().err == "error: img.png is damaged; restore it.\n"
