"""Tools run in this process, as in `tests/tools`."""

from tests.tools.conftest import adapter, tool  # noqa: F401
