"""Images with captions: JSON (a list), JSONL, or CSV and TSV with a header.

    {"image": "a.jpg", "caption": "a cat on a chair"}        several captions as a list are as many samples

A generated caption is scored against all captions of its list.

An optional `id` names a sample in messages, an optional `prompt` is what the caption answers to.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllm.data.conversations import image_paths, load_records
from mllm.sample import MARKER, Sample, Turn, check

_TABLES = {".csv": ",", ".tsv": "\t"}


def read(file: Path, root: Path, records: Iterable[Any] | None = None) -> Iterator[Sample]:
    """The captions of a file, in its order.

    Args:
        file: JSON, JSONL, CSV or TSV.
        root: Folder that the paths of images start from.
        records: The content of a JSON file, where it is known.

    Raises:
        ValueError: The file is no such table or list, or a caption is empty; names file and id.
    """
    if records is None:
        records = _table(file) if file.suffix.lower() in _TABLES else load_records(file)
    for number, record in enumerate(records, start=1):
        place = f"number {number}"
        if not isinstance(record, Mapping) or not record.get("image") or "caption" not in record:
            raise ValueError(f"{file}: sample '{place}' has no 'image' and 'caption'; each needs both.")
        id = str(record.get("id") or place)
        texts = record["caption"] if isinstance(record["caption"], list) else [record["caption"]]
        if not texts:
            raise ValueError(f"{file}: sample '{id}' has an empty list of captions; give one, or take the sample out.")
        for text in texts:
            images = image_paths(record, root, f"{file}: sample '{id}'")
            sample = captioned(id, images, text, str(record.get("prompt") or ""), str(file))
            check(sample)
            yield replace(sample, answers=tuple(texts)) if len(texts) > 1 else sample


def captioned(id: str, images: tuple[Any, ...], caption: Any, prompt: str, file: str) -> Sample:
    """A caption as the answer to its images and a prompt.

    Raises:
        ValueError: The caption is no text.
    """
    if not isinstance(caption, str):
        raise ValueError(f"{file}: sample '{id}' has the caption {caption!r}; it is a text, or a list of texts.")
    asked = prompt if MARKER in prompt else "\n".join(part for part in (MARKER * len(images), prompt) if part)
    return Sample(id, images, (Turn("user", asked), Turn("assistant", caption.strip())), file)


def _table(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            reader = csv.DictReader(opened, delimiter=_TABLES[file.suffix.lower()])
            columns = reader.fieldnames or []
            if not {"image", "caption"} <= set(columns):
                shown = ", ".join(columns[:8]) or "none"
                raise ValueError(f"{file} needs a first line with 'image' and 'caption'; it has the columns {shown}.")
            yield from reader
    except csv.Error as error:
        raise ValueError(f"{file} is not a whole table: {error}. Correct it.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start}); convert it.") from error
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read: {error.strerror}. Check the path, in a config data.root and data.files."
        ) from error
