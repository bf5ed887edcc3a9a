"""WebDataset's shards: tar files in which the files of a sample follow each other and have its name.

    000001.jpg  000001.txt        the name ends at the first point of the last part of the path; the rest is the kind

A kind `txt` is a caption. A kind `json` has a `caption`, or LLaVA's `conversations`.

The headers are read once: texts are kept, of an image the place of its bytes. Nothing is extracted, so no name leads
anywhere, and any sample can be read at any time: the order of an epoch is drawn over all shards, and a run goes on in
the middle of one. The library `webdataset` reads shards from front to back, where neither can be had.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from mllm.data.captions import captioned
from mllm.data.conversations import to_sample
from mllm.sample import Sample, Stored, check

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


def read(file: Path) -> Iterator[Sample]:
    """The samples of one shard, in its order.

    Raises:
        ValueError: The file is missing, compressed or cut short, or a sample has no text or a fault; names file and
            sample.
    """
    try:
        # "r:" and not "r": compressed files have no places to read from.
        with tarfile.open(file, "r:") as opened:
            size = file.stat().st_size
            key, images, texts = "", dict[str, Stored](), dict[str, bytes]()
            for member in opened:
                if not member.isfile():
                    continue
                name, kind = _split(member.name)
                if name != key and (images or texts):
                    yield _sample(file, key, images, texts)
                    images, texts = {}, {}
                key = name
                if member.offset_data + member.size > size:
                    raise ValueError(f"{file} ends inside {member.name}; copy it again.")
                if kind.rpartition(".")[2] in IMAGES:
                    images[kind] = Stored(member.name, file, member.offset_data, member.size)
                elif kind in ("txt", "json") and (data := opened.extractfile(member)):
                    texts[kind] = data.read()
            if images or texts:
                yield _sample(file, key, images, texts)
    except tarfile.TarError as error:
        raise ValueError(
            f"{file} is not a whole, uncompressed tar file ({error}); unpack .gz files, or copy it again."
        ) from error
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read: {error.strerror}. Check the path, in a config data.root and data.files."
        ) from error


def _split(path: str) -> tuple[str, str]:
    folder, slash, last = path.rpartition("/")
    name, _, kind = last.partition(".")
    return f"{folder}{slash}{name}", kind.lower()


def _sample(file: Path, key: str, images: dict[str, Stored], texts: dict[str, bytes]) -> Sample:
    sources = tuple(images[kind] for kind in sorted(images))
    try:
        record = json.loads(texts["json"]) if "json" in texts else {}
        caption = texts["txt"].decode() if "txt" in texts else record.get("caption")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file}: sample '{key}' has a text that is not UTF-8 or not JSON ({error}).") from error
    if "conversations" in record:
        found = to_sample(record | {"id": key, "image": None}, key, file, str(file))
        sample = Sample(key, sources, found.turns, str(file))
    elif caption is None:
        raise ValueError(
            f"{file}: sample '{key}' has no text; one is {key}.txt, or {key}.json with 'caption' or 'conversations'."
        )
    else:
        sample = captioned(key, sources, caption, "", str(file))
    check(sample)
    return sample
