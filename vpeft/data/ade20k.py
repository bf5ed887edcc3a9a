"""ADE20K's scene parsing benchmark out of its official archive, ADEChallengeData2016.zip.

Masks stay as they are on disk, 0 for what has no class and 1 to 150; readers make them 255 and 0 to 149.
"""

from __future__ import annotations

import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from vpeft.data.masked import pair
from vpeft.fetch import BAD_ZIP, cache_dir, cache_lock, refuse_encrypted, stays_inside

URL = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
NAME = "ADEChallengeData2016"
COUNTS = {"training": 20_210, "validation": 2_000}

Progress = Callable[[str, int, int | None], None]

_MEMBER = re.compile(rf"{NAME}/(?P<kind>images|annotations)/(?P<part>training|validation)/[\w.-]+\.(?:jpg|png)")
_ALSO = (f"{NAME}/objectInfo150.txt", f"{NAME}/sceneCategories.txt")
_BLOCK = 1 << 20


def prepare(
    root: Path, source: str = URL, progress: Progress | None = None, counts: Mapping[str, int] = COUNTS
) -> Path:
    """The folder root/ADEChallengeData2016, made where it is missing.

    It appears when it is whole. What a killed run left beside it is gone on with.

    Args:
        root: Folder of data sets.
        source: The archive: a file, or where it is downloaded from.
        progress: Called with what is being done, how much is done and of how much, where that is known.
        counts: Images of each part.

    Raises:
        ValueError: The archive is no zip, is damaged, or is not ADE20K's.
        RuntimeError: It cannot be downloaded, or the folder cannot be written.
    """
    report = progress or (lambda what, done, total: None)
    folder, partial = root / NAME, root / f".{NAME}.partial"
    with cache_lock(folder):
        if not folder.exists():
            remote = re.match(r"https?://", source)
            archive = _download(source, report) if remote else Path(source).expanduser()
            _extract(archive, partial, report, counts)
            check(partial, counts)
            os.replace(partial, folder)
    check(folder, counts)
    return folder


def check(folder: Path, counts: Mapping[str, int] = COUNTS) -> None:
    """See that every part has its images and each its mask.

    Raises:
        ValueError: A part has another number of images, or one lacks its mask.
    """
    for part, count in counts.items():
        found = len(pair(folder / "images" / part, folder / "annotations" / part))
        if found != count:
            raise ValueError(
                f"{folder / 'images' / part} holds {found:,} images and ADE20K has {count:,}; delete {folder} and run "
                "this again."
            )


def _extract(archive: Path, folder: Path, report: Progress, counts: Mapping[str, int]) -> None:
    if not archive.is_file():
        raise ValueError(f"{archive} is not a file; give the path of {NAME}.zip, or nothing to download it.")
    try:
        with zipfile.ZipFile(archive) as opened:
            refuse_encrypted(opened)
            wanted = _wanted(archive, opened, counts)
            for done, member in enumerate(wanted, start=1):
                target = folder / Path(member.filename).relative_to(NAME)
                # Files are moved into place whole, so that one of the right size needs no second look.
                if not (target.is_file() and target.stat().st_size == member.file_size):
                    _write(target, _read(archive, opened, member))
                report("extracting", done, len(wanted))
    except BAD_ZIP as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        raise RuntimeError(
            f"{folder} could not be written: {error.strerror}. Make room or change its permissions and run "
            "this again; what is there is kept."
        ) from error


def _read(archive: Path, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    try:
        return opened.read(member)
    except OSError as error:  # a place that its table of contents states and the file does not have
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{archive} is not a whole zip archive ({error}). If it is a download of ADE20K, delete it and run this again."
    )


def _wanted(archive: Path, opened: zipfile.ZipFile, counts: Mapping[str, int]) -> list[zipfile.ZipInfo]:
    for name in opened.namelist():
        if not stays_inside(name):
            raise ValueError(
                f"{archive} has the member '{name}', which leads out of the archive; it is not opened. "
                f"Download it again from {URL}."
            )
    wanted = {member.filename: member for member in opened.infolist() if _MEMBER.fullmatch(member.filename)}
    found = Counter(match.groups() for name in wanted if (match := _MEMBER.fullmatch(name)))
    for part, count in counts.items():
        for kind in ("images", "annotations"):
            if found[kind, part] != count:
                raise ValueError(
                    f"{archive} holds {found[kind, part]:,} files in {NAME}/{kind}/{part}/, and the scene parsing "
                    f"benchmark has {count:,}; it is another archive (the official one: {URL})."
                )
    return [*wanted.values(), *(opened.getinfo(name) for name in _ALSO if name in opened.namelist())]


def _write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _download(url: str, report: Progress) -> Path:
    """The archive in the user cache; a download that broke off goes on where it did."""
    target = cache_dir() / "downloads" / f"{NAME}.zip"
    partial = target.with_name(f"{target.name}.partial")
    with cache_lock(target):
        if target.is_file():
            return target
        there = partial.stat().st_size if partial.is_file() else 0
        asked = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer, partial.open("ab") as file:
                if there and answer.status != 206:  # a server that sends all again
                    file.truncate(0)
                    there = 0
                length = answer.headers.get("Content-Length")
                total = there + int(length) if length else None
                while block := answer.read(_BLOCK):
                    file.write(block)
                    there += len(block)
                    report("downloading", there, total)
        except (OSError, ValueError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # nothing is left to send
                total = there
            else:
                raise RuntimeError(
                    f"{url} could not be downloaded: {error}. Run this again to go on at {there:,} bytes, or download "
                    f"the archive by other means and give its path with --zip."
                ) from error
        if total is not None and there < total:
            raise RuntimeError(f"{url} broke off after {there:,} of {total:,} bytes; run this again to go on.")
        shutil.move(partial, target)
        return target
