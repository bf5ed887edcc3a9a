"""One reader of outside files under test: a sound file, how it is damaged, and the call that reads it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tests.fuzz.mutations import altered, damaged
from vpeft import adapter_file
from vpeft.tasks import checkpoint_file


def forged(adapter: Path, key: str) -> Path | None:
    """An adapter with the manifest in manifest.json beside it and the hash that goes with it: a hash is no signature.

    Args:
        adapter: Whose tensors it has.
        key: Of the manifest in the header.

    Returns:
        The file, or None where the manifest is no JSON mapping.
    """
    try:
        manifest = json.loads((adapter.parent / "manifest.json").read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict):
        return None
    tensors, path = load_file(adapter), adapter.parent / "forged.safetensors"
    text = json.dumps({**manifest, "sha256": adapter_file.digest(manifest, tensors)})
    save_file(tensors, path, {"format": "pt", key: text})
    return path


@dataclass(frozen=True)
class Reader:
    """What is read.

    Args:
        make: Writes sound files into a folder.
        file: The one that is damaged, below that folder.
        read: Reads the folder.
        form: `bytes`; `json` and `jsonl` are altered as trees too, `text` keeps to what is UTF-8 half of the time, and
            `signed` ends with the sha256 that a checkpoint of such content has.
        member: Of a zip or tar archive, the file in it that is damaged; None is the archive itself.
        skips: What is damaged is left out with a warning, and nothing refused.
    """

    make: Callable[[Path], object]
    file: str
    read: Callable[[Path], Any]
    form: str = "bytes"
    member: str | None = None
    skips: bool = False

    def content(self, folder: Path) -> bytes:
        """What is damaged, as it was made."""
        data = (folder / self.file).read_bytes()
        return _members(data)[self.member] if self.member else data

    def damage(self, whole: bytes) -> st.SearchStrategy[bytes]:
        """Bytes in its place."""
        if self.form == "json":
            return damaged(whole) | altered(json.loads(whole)).map(_dumped)
        if self.form == "jsonl":
            rows = [json.loads(line) for line in whole.splitlines()]
            return damaged(whole) | altered(rows).map(_lines)
        if self.form == "signed":
            return damaged(whole[: -checkpoint_file._COMMENT]).map(signed)
        if self.form == "text":
            return damaged(whole) | damaged(whole).map(lambda data: data.decode(errors="ignore").encode())
        return damaged(whole)

    def put(self, folder: Path, archive: bytes, data: bytes) -> None:
        """Write the damaged file as a new one: readers keep open what they know by its inode."""
        path = folder / self.file
        path.unlink(missing_ok=True)
        path.write_bytes(_packed(archive, {**_members(archive), self.member: data}) if self.member else data)


def signed(data: bytes) -> bytes:
    """A checkpoint of this content, with the hash that fits it: a hash is no signature."""
    return data + checkpoint_file._MARK + hashlib.sha256(data).hexdigest().encode()


def _dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def _lines(rows: Any) -> bytes:
    return b"".join(_dumped(row) + b"\n" for row in (rows if isinstance(rows, list) else [rows]))


def _members(data: bytes) -> dict[str, bytes]:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as opened:
            return {name: opened.read(name) for name in opened.namelist() if not name.endswith("/")}
    if data.startswith(b"\x1f\x8b") and not _is_tar(data):
        return {"": gzip.decompress(data)}
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        found = {info.name: opened.extractfile(info) for info in opened if info.isfile()}
        return {name: file.read() for name, file in found.items() if file}


def _is_tar(data: bytes) -> bool:
    return tarfile.is_tarfile(io.BytesIO(data))


def _packed(like: bytes, members: dict[Any, bytes]) -> bytes:
    made = io.BytesIO()
    if like.startswith(b"PK"):
        with zipfile.ZipFile(made, "w") as opened:
            for name, data in members.items():
                opened.writestr(name, data)
        return made.getvalue()
    if "" in members:
        return gzip.compress(members[""], 1)
    mode: Any = "w:gz" if like.startswith(b"\x1f\x8b") else "w"
    with tarfile.open(fileobj=made, mode=mode, **({"compresslevel": 1} if mode == "w:gz" else {})) as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return made.getvalue()
