"""A folder that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A place to write what becomes `output` when nothing was raised.

    Raises:
        ValueError: It is there already.
    """
    if output.exists():
        raise ValueError(f"{output} is there already; give the name of a new folder, or remove it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        built = Path(temporary, "new")
        built.mkdir()
        yield built
        mode = built.stat().st_mode & 0o666
        for file in built.iterdir():  # safetensors leaves a file that only its owner may read
            file.chmod(mode)
        os.replace(built, output)
