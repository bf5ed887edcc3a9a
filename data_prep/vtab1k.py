"""Make VTAB-1k's 19 tasks as lossless PNG with lists and a manifest, or check those that are there.

  --source originals --archives DIR   the data sets' own archives, cut in the order of TFDS (--needed lists them)
  --source tfds --tfds-dir DIR        folders that TensorFlow Datasets prepared; read without TensorFlow
  --source community --from DIR       a folder that circulates: checked and given a manifest, not converted
  --verify                            compare --root with the reference and every image with its hash

It can be stopped at any time; the next call keeps what is there. docs/data.md tells more.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import vpeft  # noqa: F401  (first, for the torchvision guard)
from vpeft import cli
from vpeft.data.tables import ALIASES, VTAB
from vpeft.nearest import did_you_mean
from vpeft.vtab1k import community, originals, tfds
from vpeft.vtab1k.export import export
from vpeft.vtab1k.readers import reader
from vpeft.vtab1k.verify import Difference, table, verify

Report = Callable[[int, int], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Make or check tasks; 0 if all are whole, 1 if one is not, 2 for a wrong request."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        tasks = _tasks(args.tasks)
        _check(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if args.needed:
        return _needed(tasks)
    if args.verify:
        return _verify(tasks, args.root, args.workers)
    failed = _each(tasks, lambda task, report: _make(task, args, report))
    print(
        f"{len(tasks) - failed} of {len(tasks)} tasks are ready in {args.root or args.source_folder}", file=sys.stderr
    )
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="all", help=f"comma-separated, or all: {', '.join(VTAB)}")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the tasks that are made or checked")
    parser.add_argument("--source", choices=("originals", "tfds", "community"), help="where the images come from")
    parser.add_argument("--archives", type=Path, metavar="DIR", help="folder of the original archives")
    parser.add_argument("--tfds-dir", type=Path, metavar="DIR", help="TFDS's data folder")
    parser.add_argument(
        "--from",
        dest="source_folder",
        type=Path,
        metavar="DIR",
        help="the community's folder; without --root the manifests are written into it",
    )
    parser.add_argument(
        "--accept-other-archives", action="store_true", help="use archives with another hash; the manifest tells it"
    )
    parser.add_argument("--verify", action="store_true", help="compare --root with the reference; makes nothing")
    parser.add_argument("--needed", action="store_true", help="list the archives of the tasks and where they come from")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes (default: %(default)s)")
    return parser


def _cores() -> int:
    # Not every system has the first, which heeds a container's share.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(names: str) -> list[str]:
    if names == "all":
        return list(VTAB)
    tasks = [ALIASES.get(name.strip(), name.strip()) for name in names.split(",") if name.strip()]
    for task in tasks:
        if task not in VTAB:
            raise ValueError(f"--tasks: VTAB-1k has no task '{task}'; {did_you_mean(task, VTAB)}")
    if not tasks:
        raise ValueError("--tasks names no task; give names with commas between them, or all.")
    return list(dict.fromkeys(tasks))


def _check(args: argparse.Namespace) -> None:
    if args.workers < 0:
        raise ValueError(f"--workers is {args.workers}; give a number of processes, 0 for none beside this one.")
    if args.needed:
        return
    if args.verify:
        if args.root is None or not args.root.is_dir():
            wrong = "is not given" if args.root is None else f"{args.root} is not a folder"
            raise ValueError(f"--verify compares the tasks in --root DIR, and --root {wrong}.")
        return
    options = {"originals": "archives", "tfds": "tfds_dir", "community": "source_folder"}
    if args.source is None:
        raise ValueError("--source is not given; say originals, tfds or community, or --verify (see --help).")
    option = {"archives": "--archives", "tfds_dir": "--tfds-dir", "source_folder": "--from"}[options[args.source]]
    folder = getattr(args, options[args.source])
    if folder is None:
        raise ValueError(
            f"--source {args.source} needs {option} DIR, the folder that holds what it makes the tasks of."
        )
    if not folder.is_dir() and (args.source != "tfds" or folder.exists()):
        raise ValueError(f"{option} {folder} is not a folder; give the one that holds what the tasks are made of.")
    if args.root is not None and args.root.exists() and not args.root.is_dir():
        raise ValueError(f"--root {args.root} is a file; give a folder, which is made where it is missing.")
    if args.root is None and args.source != "community":
        raise ValueError(f"--source {args.source} needs --root DIR, the folder that the tasks are written to.")


def _make(task: str, args: argparse.Namespace, report: Report) -> None:
    if args.source == "community":
        community.adopt(task, args.source_folder, args.root, args.workers, report)
    elif args.source == "tfds":
        export(tfds.select(task, args.tfds_dir), args.root, args.workers, report)
    else:
        export(originals.select(task, args.archives, args.accept_other_archives), args.root, args.workers, report)


def _each(tasks: list[str], work: Callable[[str, Report], None]) -> int:
    """Run a step of every task under a progress bar; the number of those that failed."""
    failed = 0
    columns = (TextColumn("{task.description:>22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        for task in tasks:
            bar = bars.add_task(task, total=None)

            def report(done: int, total: int, bar=bar) -> None:
                bars.update(bar, completed=done, total=total)

            say = partial(bars.console.print, markup=False, highlight=False, soft_wrap=True)
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always", UserWarning)
                    work(task, report)
                for warning in told:
                    say(f"{task}: {warning.message}", style="yellow")
            except (ValueError, RuntimeError, OSError) as error:
                message = str(error)
                say(message if message.startswith(task) else f"{task}: {message}", style="red")
                failed += 1
    return failed


def _verify(tasks: list[str], root: Path, workers: int) -> int:
    found: list[Difference] = []
    failed = _each(tasks, lambda task, report: found.extend(verify(task, root, workers, report)))
    wrong = {one.task for one in found}
    for task in tasks:
        if task not in wrong:
            print(f"{task}: as the reference")
    if found:
        print(table(found))
    return 1 if found or failed else 0


def _needed(tasks: list[str]) -> int:
    shown: dict[str, list[str]] = {}
    for task in tasks:
        source = reader(task)
        lines = [
            f"  {one.name}{f' ({one.size / 1e6:,.0f} MB)' if one.size else ''}{' by hand' if one.manual else ''}\n"
            f"    {one.url}" + (f"\n    sha256 {one.sha256}" if one.sha256 else "")
            for one in source.ARCHIVES
        ]
        if source.HOW:
            lines.append(f"  {source.HOW}")
        shown.setdefault("\n".join(lines), []).append(task)
    for text, names in shown.items():
        print(f"{', '.join(names)}\n{text}\n")
    return 0


if __name__ == "__main__":
    cli.run(main)
