"""The command line of a suite."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vpeft import cli
from vpeft.config import COMMAND_LINE, ConfigError, split_words
from vpeft.data.tables import ALIASES, EMBEDDED, VTAB
from vpeft.nearest import did_you_mean
from vpeft.slurm import options as slurm_options
from vpeft.suite import sweep

PROG = "tools/suite.py"
LAUNCHERS = ("local", "slurm")
_MOST_SEEDS = 10_000
# Settings of tools/train.py that a suite sets itself, and what to give instead.
_INSTEAD = {
    "data.task": "--tasks",
    "data.root": "--root",
    "seed": "--seeds",
    "output": "--output once, for the folder of the suite",
    "name": "nothing: a suite names its runs",
    "train.resume": "nothing: a suite resumes its runs by itself",
    "train.test": "--sweep, for runs that are measured on val200 alone",
}


@dataclass(frozen=True)
class Request:
    """What a suite is asked for.

    Args:
        configs: Files, one a method.
        tasks: Values of data.task.
        seeds: Of final members; the first one is that of tuning.
        swept: By dotted key, None for the values of each file.
        root: Directory of the data; None is the embedded suite.
        output: Folder of the suite.
        launcher: `local` or `slurm`.
        jobs: Processes of the local launcher.
        pack: Members trained together in one process.
        retries: Further attempts at a member that failed.
        rerun: Which finished members are run anew: none, or stale ones.
        overrides: Dotted keys and values, as of tools/train.py.
        slurm: Dotted keys without `slurm.` and their values.
    """

    configs: list[str]
    tasks: list[str]
    seeds: list[int]
    swept: sweep.Swept
    root: Path | None
    output: Path
    launcher: str
    jobs: int
    pack: int
    retries: int
    rerun: str | None
    overrides: list[tuple[str, str]]
    slurm: list[tuple[str, str]]


def parser() -> cli.Parser:
    """Of the command line, without what is passed on."""
    made = cli.Parser(
        PROG,
        usage="%(prog)s CONFIG [CONFIG ...] [--tasks all|a,b] [--seeds N|0,1,2] [--sweep lr,wd] [--key value ...]\n"
        "       %(prog)s --status [FOLDER]",
        description="Methods x tasks x seeds from one command. With --sweep, every method's settings are chosen on "
        "val200 of every task; then it is trained on all 1,000 images and tested once. What is done already is not "
        "repeated; a stopped suite goes on with the same command.",
        epilog="All other keys are those of tools/train.py --help and hold for every run; --slurm.KEY VALUE are those "
        "of the jobs.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("configs", metavar="CONFIG", nargs="*", help="one file a method; with --status the folder")
    made.add_argument("--tasks", default="all", help="comma-separated; all: VTAB's 19 under --root, else the embedded")
    made.add_argument("--seeds", default="1", help="how many, counted from 0, or which, comma-separated (default 1)")
    made.add_argument("--sweep", action="append", default=[], metavar="KEY,...|KEY=A,B", help="may be repeated")
    made.add_argument("--root", metavar="DIR", help="directory of the data")
    made.add_argument("--output", metavar="DIR", type=Path, default=Path("runs/suite"), help="default: runs/suite")
    made.add_argument("--launcher", choices=LAUNCHERS, default="local", help="default: local")
    made.add_argument("--jobs", type=cli.at_least_one, default=1, help="processes of the local launcher (default 1)")
    made.add_argument("--pack", type=cli.at_least_one, default=1, metavar="K", help="runs trained as one (default 1)")
    made.add_argument("--retries", type=cli.count, default=1, metavar="R", help="of a failed run (default 1)")
    made.add_argument("--rerun", choices=("stale",), help="run anew what was finished under other code or settings")
    made.add_argument("--status", action="store_true", help="show how a suite stands and run nothing")
    return made


def parse(argv: Sequence[str]) -> Request | Path:
    """Read the command line: a request, or with `--status` the folder to look at.

    Raises:
        ConfigError: The first mistake.
        SystemExit: With 0, after `--help` has been printed.
    """
    reader = parser()
    if "-h" in argv or "--help" in argv:
        reader.parse_args(["--help"])
    words, given = split_words([word for word in argv if word != "--status"])
    own = [f"--{key}={value}" for key, value in given if f"--{key}" in reader._option_string_actions]
    pairs = [(key, value) for key, value in given if f"--{key}" not in reader._option_string_actions]
    known = reader.parse_args([*words, *own])
    if "--status" in argv:
        return Path(known.configs[0]) if known.configs and not known.configs[0].endswith(".yaml") else known.output
    if not known.configs:
        raise ConfigError(f"{COMMAND_LINE}: at least one config file is expected, such as configs/vtab/vpt.yaml")
    swept = sweep.parse(known.sweep)
    for key, _ in pairs:
        if instead := _INSTEAD.get(key):
            raise ConfigError(f"{COMMAND_LINE}: --{key} is set by the suite; give {instead}")
        if key in swept:
            raise ConfigError(
                f"{COMMAND_LINE}: {key} has one value in --{key} and several in --sweep; give one of them"
            )
        if swept and key == "data.split":
            raise ConfigError(f"{COMMAND_LINE}: with --sweep, data.split is set by the suite; leave it out")
    slurm = [(key.removeprefix("slurm."), value) for key, value in pairs if key.startswith("slurm.")]
    if slurm and known.launcher != "slurm":
        raise ConfigError(f"{COMMAND_LINE}: --slurm.{slurm[0][0]} needs --launcher slurm")
    if known.launcher == "slurm":
        slurm_options(slurm, COMMAND_LINE)
    if known.output.exists() and not known.output.is_dir():
        raise ConfigError(f"{COMMAND_LINE}: --output {known.output} is a file; give a folder (made where missing)")
    root = Path(known.root).expanduser().absolute() if known.root else None
    return Request(
        configs=list(known.configs),
        tasks=_tasks(known.tasks, root),
        seeds=_seeds(known.seeds),
        swept=swept,
        root=root,
        output=known.output,
        launcher=known.launcher,
        jobs=known.jobs,
        pack=known.pack,
        retries=known.retries,
        rerun=known.rerun,
        overrides=[(key, value) for key, value in pairs if not key.startswith("slurm.")],
        slurm=slurm,
    )


def _tasks(text: str, root: Path | None) -> list[str]:
    names = cli.words(text)
    if not names:
        raise ConfigError(f"{COMMAND_LINE}: --tasks names no task; give names, comma-separated, or all")
    if root is not None:
        if not root.is_dir():
            raise ConfigError(f"{COMMAND_LINE}: --root {root} is no folder")
        return list(VTAB) if names == ["all"] else _distinct([ALIASES.get(name, name) for name in names], "tasks")
    from vpeft.data.prepare import chosen, suite_dir

    if names == ["all"]:
        return [name for name in chosen("all", suite_dir()) if name in EMBEDDED]
    for name in names:
        if name in VTAB or name in ALIASES:
            raise ConfigError(
                f"{COMMAND_LINE}: --tasks {name} is a task of VTAB-1k: give its data's folder, --root DIR"
            )
        if name not in EMBEDDED:
            raise ConfigError(f"{COMMAND_LINE}: there is no embedded task '{name}'; {did_you_mean(name, EMBEDDED)}")
    return _distinct(names, "tasks")


def _seeds(text: str) -> list[int]:
    words = cli.words(text)
    if not words or not all(word.isdecimal() for word in words) or words == ["0"]:
        raise ConfigError(f"{COMMAND_LINE}: --seeds must be how many, or seeds such as 0,1,2, not '{text}'")
    if too_large := [word for word in words if int(word) >= (2**32 if "," in text else _MOST_SEEDS)]:
        what = "a seed must be below 4294967296" if "," in text else f"a number of seeds is below {_MOST_SEEDS}"
        raise ConfigError(f"{COMMAND_LINE}: --seeds {too_large[0]}: {what}; one seed alone is written with a comma, 7,")
    if "," not in text:
        return list(range(int(text)))
    return _distinct([int(word) for word in words], "seeds")


def _distinct(values: list, option: str) -> list:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ConfigError(f"{COMMAND_LINE}: --{option} names {value} twice")
    return values
