"""What a member of an array writes down of itself: events.jsonl, one line for every start and every end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


def note(folder: Path, event: Mapping[str, Any]) -> None:
    """Write down one event."""
    with (folder / EVENTS).open("a") as file:
        file.write(json.dumps(event) + "\n")


def events(folder: Path) -> list[dict[str, Any]]:
    """The starts and ends of a member, oldest first; a line that was cut short is left out."""
    found, file = [], folder / EVENTS
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
