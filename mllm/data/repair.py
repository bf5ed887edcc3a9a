"""What is wrong with a file of LLaVA's conversations, and the file as it would be without that.

Nothing is invented: a turn, a round or a sample is left out, or a marker is put where LLaVA puts it. Every change has
its fault, and what has no fault is as it was.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mllm.data.conversations import ROLES, to_sample
from mllm.sample import MARKER, faults
from vpeft.data.images import UnreadableImage, decode

Progress = Callable[[int, int], None]

# What is done about each kind of fault.
ACTIONS = {
    "malformed": "the sample is left out",
    "missing_image": "the sample is left out",
    "unreadable_image": "the sample is left out",
    "assistant_first": "the turns before the first question are left out",
    "order": "the sample is left out",
    "marker_in_answer": f"{MARKER} is taken out of the text",
    "empty_turn": "its question and answer are left out",
    "no_answer": "the last question is left out",
    "markers": f"{MARKER} is put before the first question, or taken out from the end",
    "no_turns": "the sample is left out",
    "duplicated_id": "the later one gets a new id",
}


@dataclass(frozen=True)
class Fault:
    """One fault of one sample.

    Args:
        number: Of the sample in the file, from 1.
        id: As the file has it.
        kind: A key of ACTIONS.
        what: The end of a sentence that begins with the sample.
    """

    number: int
    id: str
    kind: str
    what: str


@dataclass(frozen=True)
class Examined:
    """A file that was looked through.

    Args:
        records: How many samples it has.
        faults: In the order of the file.
        repaired: Its samples without the faults.
    """

    records: int
    faults: list[Fault]
    repaired: list[Any]

    @property
    def counts(self) -> Counter[str]:
        """Faults of each kind."""
        return Counter(fault.kind for fault in self.faults)


def examine(records: Sequence[Any], root: Path, file: str, progress: Progress | None = None) -> Examined:
    """Look through conversations, decoding every image once.

    Args:
        records: As json reads them.
        root: Folder that the paths of images start from.
        file: Name of the file.
        progress: Called with the images read and their number.
    """
    bad_images = _bad_images(records, root, file, progress or (lambda done, total: None))
    found: list[Fault] = []
    repaired: list[Any] = []
    ids: Counter[str] = Counter()
    for number, record in enumerate(records, start=1):
        id = str(record["id"]) if isinstance(record, Mapping) and "id" in record else f"number {number}"

        def note(kind: str, what: str, number: int = number, id: str = id) -> None:
            found.append(Fault(number, id, kind, what))

        whole = _repaired(record, root, file, bad_images, note)
        if whole is None:
            continue
        if "id" in whole:
            ids[id] += 1
            if ids[id] > 1:
                note("duplicated_id", f"has the id of {ids[id] - 1} before it")
                whole["id"] = _new_id(id, ids)
        repaired.append(whole)
    return Examined(len(records), found, repaired)


def _bad_images(records: Sequence[Any], root: Path, file: str, progress: Progress) -> dict[Path, tuple[str, str]]:
    paths: dict[Path, None] = {}
    for record in records:
        try:
            paths |= dict.fromkeys(path for path in to_sample(record, "", root, file).images if isinstance(path, Path))
        except ValueError:
            continue  # reported with its sample
    bad: dict[Path, tuple[str, str]] = {}
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for done, (path, fault) in enumerate(zip(paths, pool.map(_image_fault, paths), strict=True), start=1):
            if fault:
                bad[path] = fault
            progress(done, len(paths))
    return bad


def _image_fault(path: Path) -> tuple[str, str] | None:
    if not path.is_file():
        return "missing_image", f"shows {path}, which is missing"
    try:
        decode(path)
    except UnreadableImage as error:
        return "unreadable_image", f"shows an image that cannot be used: {error}"
    return None


def _repaired(
    record: Any,
    root: Path,
    file: str,
    bad_images: Mapping[Path, tuple[str, str]],
    note: Callable[[str, str], None],
) -> dict[str, Any] | None:
    try:
        sample = to_sample(record, "", root, file)
    except ValueError as error:
        note("malformed", f"cannot be taken for a conversation: {error}")
        return None
    bad = [bad_images[path] for path in sample.images if isinstance(path, Path) and path in bad_images]
    for kind, what in bad:
        note(kind, what)
    kinds = dict(reversed(list(faults(sample))))  # the first of each kind
    for kind, what in reversed(kinds.items()):
        note(kind, what)
    if not kinds:
        return None if bad else record
    if bad or kinds.keys() & {"order", "no_turns"}:
        return None
    whole = copy.deepcopy(record)
    whole["conversations"] = _turns(whole["conversations"], len(sample.images))
    left = next(iter(faults(to_sample(whole, "", root, file))), None)
    if left is not None:
        note("no_turns", "has nothing left without its faults")
        return None
    return whole


def _turns(turns: list[dict[str, str]], images: int) -> list[dict[str, str]]:
    """The turns without their faults; roles alternate, but for an assistant at the start and a question at the end."""
    start = 1 if ROLES[turns[0]["from"]] == "system" else 0
    system, talk = turns[:start], turns[start:]
    while talk and ROLES[talk[0]["from"]] == "assistant":
        talk = talk[1:]
    for turn in [*system, *talk]:
        if ROLES[turn["from"]] != "user" and MARKER in turn["value"]:
            turn["value"] = turn["value"].replace(MARKER, "").strip()
    rounds = zip(talk[::2], talk[1::2], strict=False)  # a question without an answer falls off
    kept = [turn for pair in rounds if all(turn["value"].strip() for turn in pair) for turn in pair]
    markers = sum(turn["value"].count(MARKER) for turn in kept)
    if kept and markers < images:
        kept[0]["value"] = f"{MARKER}\n" * (images - markers) + kept[0]["value"]
    for turn in reversed(kept):
        while markers > images and MARKER in turn["value"]:
            before, _, behind = turn["value"].rpartition(MARKER)
            turn["value"], markers = f"{before}{behind}".strip(), markers - 1
    # A question that was nothing but a surplus marker is empty now.
    rounds = zip(kept[::2], kept[1::2], strict=True)
    return [*system, *(turn for pair in rounds if pair[0]["value"] for turn in pair)]


def _new_id(id: str, ids: Counter[str]) -> str:
    number = ids[id]
    while f"{id}#{number}" in ids:
        number += 1
    ids[f"{id}#{number}"] += 1
    return f"{id}#{number}"
