"""Which code a row was made with: rows of other code are shown as stale and not mixed with new ones."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vpeft
from vpeft.results.row import versions

# What starts, follows and reports runs decides no number of theirs.
BESIDE = ("suite", "slurm", "results")


@functools.cache
def identity() -> str:
    """The package's version, a hash of its files as they were when this process first asked, and one of its libraries.

    Finer than a commit: a change that is not committed counts, one of the documentation does not.
    """
    root = Path(vpeft.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.suffix in (".py", ".yaml", ".txt") and name.parts[0] not in BESIDE:
            digest.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    named = "".join(f"{name} {version}\n" for name, version in _libraries(versions()).items())
    return f"{vpeft.__version__}+{digest.hexdigest()[:16]}.{hashlib.sha256(named.encode()).hexdigest()[:8]}"


def difference(row: Mapping[str, Any]) -> str:
    """What is other now than when a row was made, in words.

    Args:
        row: Whose `suite.code` is not `identity()`.
    """
    made = row["suite"]["code"]
    if made.rpartition(".")[0] != identity().rpartition(".")[0]:
        return f"other code: {made}, and this is {identity()}"
    then, now = _libraries(row["versions"]), _libraries(versions())
    names = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    return "other libraries: " + ", ".join(f"{name} was {then.get(name)} and is {now.get(name)}" for name in names)


def _libraries(found: Mapping[str, str]) -> dict[str, str]:
    """Without torch's build (+cpu, +cu130) and without Python: the parts of a suite may run on several machines."""
    return {name: version.partition("+")[0] for name, version in found.items() if name not in ("python", "vpeft")}
