"""Kill commands and start them again until they are finished: are their files those of commands that nobody killed?

    python -m tests.faults.campaign [--kills 50] [--seed 0] [--only KIND] [FOLDER]

A training run, a suite, two data preparations and a search are killed by SIGKILL (`tests.faults.strikes`): at aimed
points first, each in a new folder, then at points drawn from the seed, and started again by the same command. It prints
a table, and ends with 1 where a weight, a row, a manifest or a file differs.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.prepared import PACKAGE, VTAB1K
from tests.faults.strikes import Ended, Strike, gone, run
from tests.faults.trained import SEARCH, SUITE, TRAINING
from tests.faults.victims import Kind, Victim

# Kills, of 50.
SHARES = ((TRAINING, 14), (SUITE, 12), (VTAB1K, 8), (PACKAGE, 4), (SEARCH, 12))
_MOST_STARTS = 12  # of one command


@dataclass
class Told:
    """What became of one kind.

    Args:
        kind: Its name.
        kills: Where it was killed.
        starts: Of the commands, the first ones too.
        commands: That were finished.
        rows: Of one command.
        difference: Largest from the uninterrupted command.
        left: Files left over.
        wrong: Sentences.
        missed: Aimed points that were not reached.
        seconds: All together.
    """

    kind: str
    kills: list[str] = field(default_factory=list)
    starts: int = 0
    commands: int = 0
    rows: set[int] = field(default_factory=set)
    difference: float = 0.0
    left: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """Sentences; none where all is as if nothing had been."""
        different = [f"a weight or a file differs by {self.difference:g}"] if self.difference else []
        return [*different, *(f"{name} is left over" for name in self.left), *self.wrong, *self.missed]


def campaign(
    folder: Path, kind: Kind, kills: int, seed: int = 0, plans: Iterable[Sequence[Strike]] | None = None
) -> Told:
    """Kill one command after another.

    Args:
        folder: For all files.
        kind: Of the commands.
        kills: How many.
        seed: Of what is drawn.
        plans: Where each command is killed, at one start after the other; drawn where None.
    """
    shared, told, started = folder / "shared", Told(kind.name), time.monotonic()
    shared.mkdir(parents=True)
    kind.setup(shared)
    reference = Victim(kind, shared, folder / "reference", 2)
    whole = run(reference, reference.folder, folder / "reference.log")
    assert whole.code == 0, (folder / "reference.log").read_text()
    for number, plan in enumerate(_plans(kind, whole, seed) if plans is None else plans):
        if len(told.kills) >= kills:
            break
        victim = Victim(kind, shared, folder / f"victim-{number}", number)
        _torment(victim, plan[: kills - len(told.kills)], told, folder / f"victim-{number}.log")
        outcome = victim.compare(reference)
        told.commands += 1
        told.rows.add(outcome.rows)
        told.difference = max(told.difference, outcome.difference)
        told.left += [f"{victim.folder.name}/{name}" for name in outcome.left]
        told.wrong += [f"{victim.folder.name}: {sentence}" for sentence in outcome.wrong]
    told.seconds = time.monotonic() - started
    return told


def _torment(victim: Victim, plan: Sequence[Strike], told: Told, log: Path) -> None:
    """Kill a command as planned, as long as it has not finished, and start it until it has."""
    left, others, patience = list(plan), [], _MOST_STARTS
    while True:
        strike = left.pop(0) if left else None
        ended = run(victim, victim.folder, log, strike)
        told.starts += 1
        others += ended.others
        if ended.struck:
            told.kills.append(str(strike))
            print(f"{told.kind}, {victim.folder.name}: {strike} [{ended.struck}]", file=sys.stderr, flush=True)
        elif strike and strike.name != "*":
            told.missed.append(str(strike))
        if ended.code == 0:
            break
        patience -= 1
        # A suite in which one process was killed ends with 1 where that had no attempts left.
        if patience == 0 or not (ended.struck or (ended.code == 1 and told.kind == SUITE.name)):
            told.wrong.append(f"{victim.folder.name} ends with {ended.code}: {log.read_text()[-2000:]}")
            break
    if not gone(others):
        told.wrong.append(f"{victim.folder.name}: processes outlive it")


def _plans(kind: Kind, whole: Ended, seed: int) -> Iterator[list[Strike]]:
    """The aimed points of a kind, each for a command of its own, then drawn ones; every second command has one more."""
    draw = random.Random(f"{seed} {kind.name}")
    for number, aim in enumerate(itertools.chain(kind.aims, itertools.repeat(None))):
        yield [aim or _drawn(draw, whole)] + [_drawn(draw, whole)] * (number % 2)


def _drawn(draw: random.Random, whole: Ended) -> Strike:
    """Before a change of a file, or after some time."""
    alone = draw.random() < 0.3
    if draw.random() < 0.5:
        return Strike(after=draw.uniform(0, whole.seconds), alone=alone)
    return Strike(count=draw.randint(1, whole.changes), alone=alone)


def table(found: Sequence[Told]) -> str:
    """One line a kind."""
    heads = ["killed", "kills", "commands", "starts", "rows", "largest difference", "files left", "wrong", "missed"]
    lines = [heads, ["---"] * len(heads)]
    for told in found:
        rows = " or ".join(map(str, sorted(told.rows)))
        counts = [len(told.kills), told.commands, told.starts, rows, f"{told.difference:g}", len(told.left)]
        lines.append([told.kind, *map(str, counts), str(len(told.wrong)), str(len(told.missed))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign")
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[kind.name for kind, _ in SHARES])
    given = parser.parse_args()
    folder = Path(given.folder or tempfile.mkdtemp(prefix="campaign-")).absolute()
    found = []
    for kind, share in SHARES:
        if given.only in (None, kind.name):
            kills = given.kills if given.only else round(given.kills * share / 50)
            told = campaign(folder / kind.name.replace(" ", "-"), kind, kills, given.seed)
            print(f"{kind.name}: {told.seconds:.0f} s", *told.faults(), sep="\n", file=sys.stderr, flush=True)
            found.append(told)
    print(table(found))
    return 1 if any(told.faults() for told in found) else 0


if __name__ == "__main__":
    sys.exit(main())
