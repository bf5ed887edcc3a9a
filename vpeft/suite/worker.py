"""A process that works on a suite.

    python -m vpeft.suite.worker SUITE INDEX     one item, a line of SUITE/items.jsonl, as a job of an array runs it
    python -m vpeft.suite.worker SUITE --serve   items one after another, for the local launcher

Ends with 0 when the item is done (or was), 1 when a member failed, 2 for wrong input, 4 when a final member's settings
are not chosen yet or it is stale, 5 when another process runs it, and 128 + the signal's number when a signal stopped
it; the same command goes on from there. `--rerun stale` runs stale members anew.

Serving, it reads items as JSON lines and writes what happens as JSON lines to the descriptor in VPEFT_SUITE_EVENTS;
all else that is printed goes to the log of the member at work.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from vpeft import cli
from vpeft.json_file import NUMBER, fits
from vpeft.suite import code
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Item, Member
from vpeft.suite.peers import Peers

EVENTS = "VPEFT_SUITE_EVENTS"
WAITING, BUSY = 4, 5


def main(argv: Sequence[str]) -> int:
    parser = cli.Parser("python -m vpeft.suite.worker", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("suite", metavar="SUITE", type=Path)
    parser.add_argument("index", metavar="INDEX", nargs="?", type=int)
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--rerun", choices=("stale",))
    arguments = parser.parse_args(argv)
    folder = SuiteFolder(arguments.suite)
    code.identity()  # of what is imported from here on: this process may wait long for its first item
    if arguments.serve == (arguments.index is not None):
        parser.error("give INDEX, or --serve")
    with leaving():
        if arguments.serve:
            return _serve(folder, arguments.rerun == "stale")
        item = folder.item(arguments.index)
        from vpeft.suite.work import follow, work

        peers = _peers(folder, arguments.index)
        if peers is not None and peers.rank:
            follow(folder, peers)
            return 0
        return _code(work(folder, item, _tell, arguments.rerun == "stale", peers))


def _peers(folder: SuiteFolder, index: int) -> Peers | None:
    """The processes that srun started together with this one."""
    from vpeft.slurm import cluster

    place = cluster.place()
    return None if place is None else Peers(folder.path / "notes" / f"item-{index}-{place.start}.json", place.rank)


def _code(ended: Sequence[str]) -> int:
    codes = {"done": 0, "diverged": 0, "failed": 1, "waiting": WAITING, "stale": WAITING, "running": BUSY}
    return next((codes[kind] for kind in ("failed", "waiting", "stale", "running") if kind in ended), 0)


@contextlib.contextmanager
def leaving(again: float = 5.0) -> Iterator[None]:
    """Leave on SIGTERM; while a run trains, its own handler saves first (`vpeft.tasks.resuming.LastCheckpoint`).

    What a handler raises is lost where Python happens to be in a destructor or in the callback of a weak reference.
    So the signal comes again every `again` seconds until this process is out of here.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, again, again)
        raise SystemExit(128 + number)

    def repeat(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = {number: signal.signal(number, to) for number, to in ((signal.SIGTERM, leave), (signal.SIGALRM, repeat))}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(member: Member, kind: str, why: str, row: Mapping[str, Any] | None) -> None:
    print(f"{kind}: {member.title}" + (f": {why}" if why else ""), file=sys.stderr, flush=True)


def _serve(folder: SuiteFolder, stale: bool) -> int:
    from vpeft import run  # noqa: F401  (what takes seconds to import is imported once, before the first item)
    from vpeft.suite.work import work

    with open(int(os.environ.pop(EVENTS)), "wb", buffering=0) as events:
        _send(events, kind="ready")
        for line in sys.stdin:
            item = Item(**json.loads(line))
            first = folder.members()[item.members[0]]

            def report(member: Member, kind: str, why: str, row: Mapping[str, Any] | None) -> None:
                _tell(member, kind, why, row)
                _send(events, kind=kind, member=member.id, why=why, said=_said(row))

            with _into(folder.log(first)):
                work(folder, item, report, stale)
            _send(events, kind="idle")
    return 0


def _said(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the launcher shows of a row; nothing of the result.json of a finished run that is no row of a suite."""
    part = "test" if row and row.get("test") else "val"
    if row is None or not fits(row, {part: {"accuracy": NUMBER}, "time": {"wall_seconds": NUMBER}}):
        return None
    return {"part": part, "accuracy": row[part]["accuracy"], "seconds": row["time"]["wall_seconds"]}


def _send(events: BinaryIO, **event: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher is gone; the member is finished all the same
        events.write(json.dumps(event).encode() + b"\n")


@contextlib.contextmanager
def _into(log: Path) -> Iterator[None]:
    """Append everything that this process and its children print to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") as file:
        try:
            _flush()
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield
        finally:
            _flush()
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


if __name__ == "__main__":
    cli.run(main)
