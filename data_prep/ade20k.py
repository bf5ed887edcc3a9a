"""Make ADE20K's scene parsing benchmark (20,210 images to train on, 2,000 to test on) out of its official archive.

    python data_prep/ade20k.py --root data                                    (downloads 0.9 GB)
    python data_prep/ade20k.py --root data --zip ADEChallengeData2016.zip

It can be stopped at any time and goes on where it was. Afterwards: --data.root data in tools/train.py. The images may
be used for research that is not commercial; see https://ade20k.csail.mit.edu for the terms.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

import vpeft  # noqa: F401  (first, for the torchvision guard)
from vpeft import cli
from vpeft.data.ade20k import URL, prepare


def main(argv: Sequence[str] | None = None) -> int:
    """Make the data set; 0 when it is whole."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of data sets; data.root in a config")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--zip", help="the archive, if it is here already")
    source.add_argument("--url", default=URL, help=f"where it is downloaded from (default: {URL})")
    args = parser.parse_args(argv)
    if args.root.is_file():
        parser.error(f"--root {args.root} is a file; give a folder, which is made where it is missing")
    columns = (TextColumn("{task.description:>12}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task("", total=None)
        try:
            folder = prepare(
                args.root.expanduser(),
                args.zip or args.url,
                lambda what, done, total: bars.update(bar, description=what, completed=done, total=total),
            )
        except (ValueError, RuntimeError) as error:
            bars.console.print(str(error), style="red", markup=False, soft_wrap=True)
            return 1
    print(f"ADE20K is whole in {folder}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    cli.run(main)
