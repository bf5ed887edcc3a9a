"""Call Slurm's own commands."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence


def run(words: Sequence[str]) -> str:
    """What one of Slurm's commands prints.

    Raises:
        RuntimeError: It is not here, or it fails; its own message and the command.
    """
    # In a job or in an salloc session, what that asked for is no part of what is asked here.
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
    try:
        done = subprocess.run(words, capture_output=True, text=True, env=kept)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"'{words[0]}' is not on the PATH, so there is no Slurm on this machine. Submit from a login node of the "
            "cluster, or use the local launcher."
        ) from error
    if done.returncode:
        said = " | ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise RuntimeError(f"{said or f'code {done.returncode}'}. The command was: {shlex.join(words)}")
    return done.stdout.strip()
