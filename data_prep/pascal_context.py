"""Check a PASCAL_MT download, and make of its MATLAB files what training reads.

    python data_prep/pascal_context.py --root DIR/PASCAL_MT
    python data_prep/pascal_context.py --root DIR/PASCAL_MT --verify

The archive is PASCAL_MT.tgz of the ASTMT authors (https://github.com/facebookresearch/astmt), unpacked by you. What is
there already is kept; it can be stopped at any time. --verify writes nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import vpeft  # noqa: F401  (first, for the torchvision guard)
from vpeft import cli
from vpeft.data.pascal_prepare import prepare, verify

SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Make what is missing and verify all; 0 if all is whole, 1 if something is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder PASCAL_MT")
    parser.add_argument("--verify", action="store_true", help="only look")
    args = parser.parse_args(argv)
    try:
        if not args.verify:
            for done, count in prepare(args.root):
                if done % 500 == 0 or done == count:
                    print(f"{done} of {count} images", flush=True)
        faults = verify(args.root)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    for fault in faults[:SHOWN]:
        print(fault, file=sys.stderr)
    if faults:
        print(f"{len(faults)} faults in {args.root}.", file=sys.stderr)
    else:
        print(f"{args.root} is whole.")
    return 1 if faults else 0


if __name__ == "__main__":
    cli.run(main)
