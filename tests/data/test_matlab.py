"""MATLAB files in a process of their own; what damaged ones do is in tests/fuzz/test_security.py."""

import subprocess
import sys

import numpy as np
from scipy.io import savemat

from vpeft.data.matlab import apart

SCRIPT = """
import sys
from vpeft.data.matlab import apart

with apart() as load:
    print(load(sys.argv[1]))
"""


def test_the_variables_that_are_wanted_are_read(tmp_path):
    savemat(tmp_path / "x.mat", {"a": np.arange(3), "b": np.ones(2)})
    with apart() as load:
        assert {"a", "b"} <= load(tmp_path / "x.mat").keys()
        assert load(tmp_path / "x.mat", ["b"])["b"].tolist() == [[1.0, 1.0]]


def test_a_script_that_cannot_start_a_process_is_told_so_and_no_file_is_blamed(tmp_path):
    savemat(tmp_path / "x.mat", {"a": np.arange(3)})
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "x.mat")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "put what it does under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
    assert "not a whole MATLAB file" not in done.stderr
