"""What a member of an array writes down of itself: events.jsonl, one line for every start and every end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpeft.json_file import NUMBER, fits, parsed

EVENTS = "events.jsonl"
_END = {"state": str, "code": int, "seconds": NUMBER}


def note(folder: Path, event: Mapping[str, Any]) -> None:
    """Write down one event."""
    with (folder / EVENTS).open("a") as file:
        file.write(json.dumps(event) + "\n")


def events(folder: Path) -> list[dict[str, Any]]:
    """The starts and ends of a member, oldest first; a line that was cut short or damaged is left out."""
    file = folder / EVENTS
    lines = file.read_bytes().splitlines() if file.exists() else ()
    found = [parsed(line, {"event": str}) for line in lines]
    return [event for event in found if event and (event["event"] != "end" or fits(event, _END))]
