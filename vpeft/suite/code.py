"""Which code a row was made with: rows of other code are shown as stale and not mixed with new ones."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import vpeft

# What starts, follows and reports runs decides no number of theirs.
BESIDE = ("suite", "slurm", "results")


@functools.cache
def identity() -> str:
    """The package's version and a hash of its files, as they were when this process first asked.

    Finer than a commit: a change that is not committed counts, one of the documentation does not.
    """
    root = Path(vpeft.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.suffix in (".py", ".yaml", ".txt") and name.parts[0] not in BESIDE:
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return f"{vpeft.__version__}+{digest.hexdigest()[:16]}"
