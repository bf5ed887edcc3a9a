"""A member that runs as several processes: srun starts them all at once, and the first tells the others what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpeft.fetch import write_atomic
from vpeft.json_file import fits, read_json

PATIENCE = 300.0  # seconds until processes that are told nothing end; the first one waits for no lock and no data
_TOLD = {"member": str, "resume": bool, "tuning": dict | None}
_AGAIN = "start the item again, which writes another"
Told = tuple[str, bool, Any]  # a member's id, whether its run is resumed, its choice of settings


@dataclass(frozen=True)
class Peers:
    """The processes that srun has started for one item.

    Args:
        file: In which the first one says what is to be run; of this start alone.
        rank: Of this process among them.
    """

    file: Path
    rank: int

    def tell(self, runs: Iterable[Told]) -> None:
        """Say what is to be run, in this order; nothing where nothing is left."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.file, (json.dumps(list(runs)) + "\n").encode())

    def told(self) -> list[Told]:
        """Wait for that.

        Raises:
            TimeoutError: Nothing was said.
            ValueError: What was said is damaged.
        """
        end = time.monotonic() + PATIENCE
        while not self.file.exists():
            if time.monotonic() > end:
                raise TimeoutError(
                    f"The first process of this item has not written {self.file} within {PATIENCE:.0f} s; its own "
                    "message says why. All nodes must see the folder of the suite."
                )
            time.sleep(0.2)
        told = read_json(self.file, [list], _AGAIN)
        if not all(len(one) == 3 and fits(dict(zip(_TOLD, one, strict=True)), _TOLD) for one in told):
            raise ValueError(f"{self.file} is damaged: {_AGAIN}.")
        return [(key, resume, tuning) for key, resume, tuning in told]
