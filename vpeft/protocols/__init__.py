"""Named protocols: what several papers hold equal while they compare methods, in NAME.yaml beside this file.

A protocol is a config file that names neither method nor data. It is laid over a config by `--protocol NAME`, and under
it by `protocol: NAME` in the file. The files are part of the package, so that an installed one has them too;
configs/protocols is a link to this folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vpeft.nearest import did_you_mean
from vpeft.schema import ConfigError
from vpeft.yaml_file import read_yaml

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """All protocols there are."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def read(name: str, source: str) -> dict[str, Any]:
    """The content of a protocol's file.

    Args:
        source: Where the name was given, for the error.

    Raises:
        ConfigError: There is no such protocol; names the near ones.
    """
    if name not in names():
        raise ConfigError(f"{source}: there is no protocol '{name}'; {did_you_mean(name, names())}")
    return read_yaml(file(name))


def file(name: str) -> Path:
    """Where a protocol is."""
    return FOLDER / f"{name}.yaml"
