"""The command line of tools/bench.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vpeft import cli
from vpeft.bench.setting import PRECISIONS, Setting

DESCRIPTION = """Measure what methods cost on this machine.

methods FILE   every method, full fine-tuning, a linear probe and Hugging Face peft's on one backbone
curves FILE    growth of time, memory and operations, beside what theory expects
epochs FILE    an epoch of the linear probe with cached features and without
show FILE      the tables of such a file, and with --picture its drawing
docs PAGE      write the marked tables and drawings of a page anew
"""
MEASURES = ("memory", "time", "inference", "compile", "profile")


def main(argv: Sequence[str]) -> None:
    """Run it."""
    given = vars(_parser().parse_args(argv))
    run = given.pop("run")
    run(**given)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = cli.Parser("tools/bench.py", description=DESCRIPTION, formatter_class=formatter, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=cli.Parser)

    one = commands.add_parser("methods", help="every method on one backbone", allow_abbrev=False)
    one.set_defaults(run=_methods)
    one.add_argument("file", type=Path, metavar="FILE", help="JSON; what it holds already is kept")
    text = f"of {', '.join(MEASURES)}; memory alone does not need a quiet machine"
    one.add_argument("--measure", type=cli.words, default=["memory", "time"], help=f"{text} (default: memory,time)")
    one.add_argument("--cases", type=cli.words, help="by default all; lora-qkv@bf16 has its own precision")
    one.add_argument(
        "--rounds", type=cli.at_least_one, help="turns of each (default: 5, of memory, compile and profile 3)"
    )
    _add_settings(one, Setting())

    one = commands.add_parser("curves", help="growth beside theory", allow_abbrev=False)
    one.set_defaults(run=_curves)
    one.add_argument("file", type=Path, metavar="FILE", help="JSON; axes that are not measured again are kept")
    one.add_argument("--axes", type=cli.words, help="by default all")
    one.add_argument("--methods", type=cli.words, help="by default all that have curves")
    one.add_argument("--rounds", type=cli.at_least_one, default=3)
    for name in ("image-size", "patch", "batch", "depth", "dim", "heads", "prompts", "rank", "threads"):
        one.add_argument(f"--{name}", type=cli.at_least_one, help="by default ViT-S/16's, batch 8")
    _add_place(one)

    one = commands.add_parser("epochs", help="cached features", allow_abbrev=False)
    one.set_defaults(run=_epochs)
    one.add_argument("file", type=Path, metavar="FILE")
    one.add_argument("--backbone")
    for name in ("image-size", "images", "batch", "epochs", "threads"):
        one.add_argument(f"--{name}", type=cli.at_least_one)
    one.add_argument("--rounds", type=cli.at_least_one, default=2)

    one = commands.add_parser("show", help="tables and drawing of a file", allow_abbrev=False)
    one.set_defaults(run=_show)
    one.add_argument("file", type=Path, metavar="FILE")
    one.add_argument("--parts", type=cli.words, help="by default all tables that it can fill")
    one.add_argument("--picture", type=Path, metavar="SVG", help="also draw it into this file")

    one = commands.add_parser("docs", help="write a page's tables anew", allow_abbrev=False)
    one.set_defaults(run=_docs)
    one.add_argument("page", type=Path, metavar="PAGE")
    return parser


def _add_settings(parser: argparse.ArgumentParser, default: Setting) -> None:
    parser.add_argument("--backbone", default=default.backbone, help=f"timm name (default: {default.backbone})")
    for name in ("batch", "threads", "inference_batch"):
        value = getattr(default, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=cli.at_least_one, default=value, help=f"({value})")
    parser.add_argument("--image-size", type=cli.at_least_one, help="by default the backbone's own")
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)


def _methods(file: Path, measure: list[str], cases: list[str] | None, rounds: int | None, **settings: Any) -> None:
    setting = Setting(**settings)
    if unknown := [one for one in measure if one not in MEASURES]:
        raise ValueError(f"--measure: there is no {', '.join(unknown)}; there are {', '.join(MEASURES)}.")
    from vpeft.bench.cases import CASES, check
    from vpeft.bench.measure import MEASURES as RUN
    from vpeft.bench.measure import ROUNDS
    from vpeft.bench.record import Record

    check(cases or [])
    record = Record(file, "methods", setting)
    for name in measure:
        RUN[name](setting, cases or list(CASES), rounds or ROUNDS[name], record, _say)
    _show(file, None, None)


def _curves(file: Path, axes: list[str] | None, methods: list[str] | None, rounds: int, **settings: Any) -> None:
    from vpeft.bench import curves
    from vpeft.bench.record import Record

    base = curves.Shape(**{name: value for name, value in settings.items() if value is not None})
    curves.check(axes or [], methods or [])
    record = Record(file, "curves", base)
    curves.measure(base, axes or list(curves.AXES), methods or curves.METHODS, rounds, record, _say)
    _show(file, ["about", "growth"], None)


def _epochs(file: Path, rounds: int, **settings: Any) -> None:
    from vpeft.bench import epochs
    from vpeft.bench.record import Record

    setting = epochs.Epochs(**{name: value for name, value in settings.items() if value is not None})
    epochs.measure(setting, rounds, Record(file, "epochs", setting), _say)
    _show(file, None, None)


def _show(file: Path, parts: list[str] | None, picture: Path | None) -> None:
    from vpeft.bench import pages
    from vpeft.bench.record import read
    from vpeft.fetch import write_atomic

    data = read(file)
    known = pages.parts(data)
    if unknown := [part for part in parts or [] if part not in known]:
        raise ValueError(f"{file} has no table {', '.join(unknown)}; it has {', '.join(known)}.")
    print("\n\n".join(known[part] for part in parts or known))
    if picture:
        write_atomic(picture, pages.drawing(data).encode())


def _docs(page: Path) -> None:
    from vpeft.bench.pages import refresh

    for path in refresh(page):
        print(path)


def _say(text: str) -> None:
    print(text, flush=True)
