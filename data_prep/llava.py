"""Look through a file of LLaVA's conversations and its images, and write it without the faults that are found.

    python data_prep/llava.py llava_v1_5_mix665k.json --images DIR
    python data_prep/llava.py llava_v1_5_mix665k.json --images DIR --output repaired.json

Found are images that are missing or cannot be read, another number of <image> than of images, empty turns,
conversations that start with the assistant, do not alternate or end with a question, and ids given twice. Nothing is
changed but in --output, and all that is changed there is in the report beside it, repaired.report.json. Exit code: 0 if
the file is whole, or its repaired copy was written; 1 if there are faults, or nothing could be written; 2 if the file
cannot be looked through.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

import mllm  # noqa: F401  (first, for the torchvision guard)
from mllm.data.conversations import load_records
from mllm.data.repair import ACTIONS, Examined, examine
from vpeft import cli
from vpeft.fetch import file_sha256, write_atomic

SHOWN = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Look through a file; the module says what is returned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="conversations, .json or .jsonl")
    parser.add_argument("--images", type=Path, required=True, help="the folder that the paths of images start from")
    parser.add_argument("--output", type=Path, help="a new file for the conversations without their faults")
    args = parser.parse_args(argv)
    report = args.output.with_suffix(".report.json") if args.output else None
    try:
        _check(args.file, args.images, args.output, report)
        records = load_records(args.file)
        with Progress(console=Console(stderr=True)) as bars:
            bar = bars.add_task("images", total=None)
            found = examine(
                records, args.images, str(args.file), lambda done, total: bars.update(bar, completed=done, total=total)
            )
        _show(args.file, found)
        if args.output and report:
            _write(args.file, args.images, args.output, report, found)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 1 if found.faults and not args.output else 0


def _check(file: Path, images: Path, output: Path | None, report: Path | None) -> None:
    if not images.is_dir():
        raise ValueError(f"--images {images} is not a folder; give the one that the paths in {file} start from.")
    for path in (output, report):
        if path and path.exists():
            raise ValueError(f"--output: {path} exists and is not replaced; give another name, or remove it.")


def _show(file: Path, found: Examined) -> None:
    for kind, count in found.counts.most_common():
        print(f"{kind}: {count} ({ACTIONS[kind]} in a repaired copy)")
        for fault in [fault for fault in found.faults if fault.kind == kind][:SHOWN]:
            print(f"    number {fault.number}, '{fault.id}', {fault.what}")
        if count > SHOWN:
            print(f"    and {count - SHOWN} more")
    faulty = len({fault.number for fault in found.faults})
    print(f"{faulty} of {found.records} samples in {file} have faults; {len(found.repaired)} can be used.")


def _write(file: Path, images: Path, output: Path, report: Path, found: Examined) -> None:
    if output.suffix.lower() == ".jsonl":
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found.repaired)
    else:
        text = json.dumps(found.repaired, ensure_ascii=False, indent=1)
    facts = {
        "file": str(file),
        "sha256": file_sha256(file),
        "images": str(images),
        "samples": found.records,
        "written": len(found.repaired),
        "faults": dict(found.counts.most_common()),
        "actions": {kind: ACTIONS[kind] for kind in found.counts},
        "found": [asdict(fault) for fault in found.faults],
    }
    # The report first: no repaired file is without one.
    write_atomic(report, json.dumps(facts, ensure_ascii=False, indent=1).encode())
    write_atomic(output, text.encode())
    print(f"Written: {output}, with {len(found.repaired)} samples, and what was changed in {report}.")


if __name__ == "__main__":
    cli.run(main)
