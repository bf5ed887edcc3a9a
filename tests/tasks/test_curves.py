"""What cannot be written of a run's curves is called what it is."""

import errno

import pytest

from vpeft.tasks.curves import Curves


@pytest.fixture
def logger(tmp_path):
    return Curves(tmp_path, "run", "tensorboard")


def test_a_full_disk_is_not_called_a_value_that_cannot_be_logged(logger, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(logger.experiment, "add_scalar", full)
    with pytest.raises(OSError, match="No space left on device") as raised:
        logger.log_metrics({"loss": 0.5}, 1)
    assert raised.value.errno == errno.ENOSPC


def test_a_value_that_cannot_be_logged_is(logger):
    with pytest.raises(ValueError, match="you tried to log"):
        logger.log_metrics({"loss": object()}, 1)
