"""Small disks that fill up and places that cannot be written, for root too."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SUDO = [] if os.geteuid() == 0 else ["sudo", "-n"]


def _may_mount() -> bool:
    if not shutil.which("mount") or (_SUDO and not shutil.which("sudo")):
        return False
    # In a namespace of its own nothing of this machine changes, and the same right is asked for.
    return subprocess.run([*_SUDO, "unshare", "-m", "true"], capture_output=True).returncode == 0


needs_mount = pytest.mark.skipif(
    not _may_mount(), reason="needs the right to mount a tmpfs: root, or sudo that asks no"
)


@contextmanager
def small(place: Path, pages: int) -> Iterator[Path]:
    """A disk of so many pages of 4 KiB, of which each file takes whole ones."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [*_SUDO, "mount", "-t", "tmpfs", "-o", f"size={pages * 4}k,mode=1777", "small", str(place)], check=True
    )
    try:
        yield place
    finally:
        subprocess.run([*_SUDO, "umount", "-l", str(place)], check=True)


def grow(place: Path) -> None:
    """Free some space."""
    subprocess.run([*_SUDO, "mount", "-o", "remount,size=64m", str(place)], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[Path]:
    """A folder that nobody can write in, be it root."""
    subprocess.run([*_SUDO, "mount", "--bind", str(place), str(place)], check=True)
    try:
        subprocess.run([*_SUDO, "mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run([*_SUDO, "umount", "-l", str(place)], check=True)
