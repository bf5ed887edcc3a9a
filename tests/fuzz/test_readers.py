"""Whatever the bytes of an outside file, its reader gives a value or one sentence, and does nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz import language, vision, vtab1k
from tests.fuzz.guard import REFUSED, outcome
from tests.fuzz.reader import Reader

READERS = vision.READERS | vtab1k.READERS | language.READERS
FEW, MANY = 8, 1000


def tried(reader: Reader, folder: Path, examples: int) -> tuple[int, int]:
    """Read damaged files; returns how many were refused, and how many gave a value."""
    reader.make(folder)
    archive, whole = (folder / reader.file).read_bytes(), reader.content(folder)
    assert reader.read(folder) is not REFUSED  # what is sound is read, and imports what it needs
    counts = [0, 0]

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(reader.damage(whole))
    def attempt(data: bytes) -> None:
        reader.put(folder, archive, data)
        counts[outcome(lambda: reader.read(folder), folder) is not REFUSED] += 1

    attempt()
    return counts[0], counts[1]


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    refused, _ = tried(READERS[name], tmp_path, FEW)
    assert refused


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_a_thousand_damaged_files_are_read_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    refused, read = tried(READERS[name], tmp_path, MANY)
    print(f"{name}: {refused} refused, {read} read")
    assert refused
