"""What the readers share: examples of an archive's members, labels that are checked, ranks of class names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.source import Example


def examples(archive: Archive, wanted: Iterable[tuple[str, str, int]], classes: int) -> list[Example]:
    """Examples of an archive's images, in the archive's order.

    Args:
        wanted: Member, TFDS's key and label of every example.
        classes: Labels are below this.

    Raises:
        ValueError: The archive lacks a member, or a label is out of range.
    """
    found = [(archive.member(name), key, checked(label, classes, name)) for name, key, label in wanted]
    found.sort(key=lambda example: example[0].offset)
    return [Example(key, label, member.image) for member, key, label in found]


def checked(label: int, classes: int, name: str) -> int:
    """The label.

    Raises:
        ValueError: It is below 0 or not below `classes`.
    """
    if not 0 <= label < classes:
        raise ValueError(f"'{name}' has the label {label}; this task has labels from 0 to {classes - 1}.")
    return label


def ranks(names: Collection[str], classes: int, path: Path) -> Mapping[str, int]:
    """Class names to labels: TFDS lists the classes of these data sets in alphabetical order.

    Raises:
        ValueError: There are not so many classes.
    """
    if len(names) != classes:
        some = ", ".join(sorted(names)[:3]) or "none"
        raise ValueError(f"{path} has {len(names)} classes ({some} ...) and not {classes}; it is incomplete.")
    return {name: label for label, name in enumerate(sorted(names))}


def text(data: bytes, where: str) -> str:
    """The words of a text file.

    Args:
        where: What it is, for the message.

    Raises:
        ValueError: It is no UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no text ({error.reason} at byte {error.start}); fetch it again.") from error


def lines(data: bytes, where: str) -> list[str]:
    """The lines of a text file that are not empty, without the spaces around them; as `text`."""
    return [line for raw in text(data, where).splitlines() if (line := raw.strip())]
