"""MATLAB files in a process of their own; what damaged ones do is in tests/fuzz/test_security.py."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.io import savemat

from vpeft.data.matlab import BYTES, apart

SCRIPT = """
import mmap, sys
from vpeft.data.matlab import apart

reserved = mmap.mmap(-1, int(sys.argv[2]), prot=mmap.PROT_READ)  # as the libraries of a GPU do

def main():
    with apart("fetch it again") as load:
        print(load(sys.argv[1])["a"].tolist())

"""
GUARD = "if __name__ == '__main__':\n    main()\n"


@pytest.fixture
def file(tmp_path):
    savemat(tmp_path / "x.mat", {"a": np.arange(3), "b": np.ones(2)})
    return tmp_path / "x.mat"


def run(file, script, reserved):
    path = file.with_name("script.py")
    path.write_text(script)
    command = [sys.executable, str(path), str(file), str(reserved)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_variables_that_are_wanted_are_read(file):
    with apart("fetch it again") as load:
        assert {"a", "b"} <= load(file).keys()
        assert load(file, ["b"])["b"].tolist() == [[1.0, 1.0]]


def test_a_script_that_cannot_start_a_process_is_told_so_and_no_file_is_blamed(file):
    done = run(file, SCRIPT + "main()\n", 4096)
    assert done.returncode == 1
    assert "put what it does under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
    assert "not a whole MATLAB file" not in done.stderr


def test_memory_that_a_script_has_taken_already_leaves_the_reader_enough(file):
    done = run(file, SCRIPT + GUARD, BYTES)
    assert done.stdout == "[[0, 1, 2]]\n", done.stderr
