from __future__ import annotations

import http.server
import io
import runpy
import threading
import zipfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.wheels import encrypt, write_wheel
from vpeft.data import ade20k
from vpeft.data.ade20k import NAME, prepare
from vpeft.data.segmentation import SegmentationData
from vpeft.dense.schema import SegmentationDataConfig

COUNTS = {"training": 4, "validation": 2}
main: Callable[[list[str]], int] = runpy.run_path(str(Path(__file__).parents[2] / "data_prep/ade20k.py"))["main"]


def members() -> dict[str, bytes]:
    found = {f"{NAME}/objectInfo150.txt": b"Idx", f"{NAME}/": b"", f"{NAME}/images/": b""}
    for part, count in COUNTS.items():
        for i in range(count):
            random = np.random.RandomState(i)
            image, mask = io.BytesIO(), io.BytesIO()
            Image.fromarray(random.randint(0, 256, (20, 24, 3)).astype(np.uint8)).save(image, "JPEG")
            Image.fromarray(random.randint(0, 151, (20, 24)).astype(np.uint8)).save(mask, "PNG")
            found[f"{NAME}/images/{part}/ADE_{i:08d}.jpg"] = image.getvalue()
            found[f"{NAME}/annotations/{part}/ADE_{i:08d}.png"] = mask.getvalue()
    return found


def write(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in content.items():
            opened.writestr(name, data)
    return path


def inodes(folder: Path) -> dict[str, int]:
    return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in folder.rglob("*.*")}


def test_the_archive_becomes_a_folder_that_is_read(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.zip", members())
    seen: list[tuple[str, int, int | None]] = []
    folder = prepare(tmp_path / "root", str(archive), lambda *step: seen.append(step), COUNTS)
    assert folder == tmp_path / "root" / NAME
    assert seen[-1] == ("extracting", 13, 13)
    written = {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    assert written == {name: data for name, data in members().items() if not name.endswith("/")}
    data = SegmentationData(SegmentationDataConfig(task="ade20k", root=tmp_path / "root"), (16, 16), 0)
    on_disk = np.asarray(Image.open(data.splits["test"].masks[0])).astype(int)
    mask = next(iter(data.test_dataloader()))["mask"][0].numpy()
    assert np.array_equal(mask, np.where(on_disk == 0, 255, on_disk - 1))
    assert data.provenance["counts"] == {"train": 4, "val": 0, "test": 2}


@pytest.mark.skipif(find_spec("mmseg") is None, reason="needs mmsegmentation: the extra dense")
def test_files_classes_colours_and_masks_are_those_of_mmsegmentations_own_data_set(tmp_path: Path) -> None:
    from vpeft.dense.mmseg import need, register

    register()
    folder = prepare(tmp_path / "root", str(write(tmp_path / "a.zip", members())), lambda *step: None, COUNTS)
    theirs = need("mmseg.datasets").ADE20KDataset(
        data_root=str(folder),
        data_prefix={"img_path": "images/validation", "seg_map_path": "annotations/validation"},
        pipeline=[need("mmcv.transforms").LoadImageFromFile(), need("mmseg.datasets.transforms").LoadAnnotations()],
    )
    data = SegmentationData(SegmentationDataConfig(task="ade20k", root=tmp_path / "root"), (16, 16), 0)
    table, split = data.classes, data.splits["test"]
    assert list(table.names) == [name.strip() for name in theirs.metainfo["classes"]]
    assert [list(colour) for colour in table.colours] == [list(colour) for colour in theirs.metainfo["palette"]]
    assert len(theirs) == len(split.images)
    for one, file, batch in zip(theirs, split.images, data.test_dataloader(), strict=True):
        assert Path(one["img_path"]) == Path(file)
        assert np.array_equal(one["gt_seg_map"], batch["mask"][0].numpy())


def test_what_a_killed_run_left_is_gone_on_with(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.zip", members())

    class Killed(BaseException):
        pass

    def kill(what: str, done: int, total: int | None) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        prepare(tmp_path, str(archive), kill, COUNTS)
    assert not (tmp_path / NAME).exists()
    kept = inodes(tmp_path / f".{NAME}.partial")
    folder = prepare(tmp_path, str(archive), None, COUNTS)
    assert len(kept) == 5
    assert kept.items() <= inodes(folder).items()
    archive.unlink()
    assert prepare(tmp_path, str(archive), None, COUNTS) == folder  # whole: the archive is not needed again


@pytest.mark.parametrize("name", ["../out.png", f"{NAME}/images/training/../../../out.jpg", "/tmp/out.jpg"])
def test_a_member_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / "a.zip", members() | {name: b"x"})
    with pytest.raises(ValueError, match="leads out of the archive; it is not opened"):
        prepare(tmp_path / "root", str(archive), None, COUNTS)
    assert not list((tmp_path / "root").glob(f"*{NAME}*/*"))


def test_another_archive_is_refused_by_its_counts(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.zip", members())
    with pytest.raises(
        ValueError, match=r"holds 4 files in .*images/training/, and .* has 20,210; it is another archive"
    ):
        prepare(tmp_path / "root", str(archive))
    assert main(["--root", str(tmp_path / "root"), "--zip", str(archive)]) == 1


def test_what_is_no_whole_archive_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.zip", members()).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:-300])
    with pytest.raises(ValueError, match=r"cut\.zip is not a whole zip archive"):
        prepare(tmp_path / "root", str(tmp_path / "cut.zip"), None, COUNTS)
    with pytest.raises(ValueError, match=r"absent\.zip is not a file; give the path of ADEChallengeData2016\.zip"):
        prepare(tmp_path / "root", str(tmp_path / "absent.zip"), None, COUNTS)


def test_a_folder_that_lost_a_file_is_named(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.zip", members())
    folder = prepare(tmp_path, str(archive), None, COUNTS)
    for path in (folder / "images/training/ADE_00000000.jpg", folder / "annotations/training/ADE_00000000.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"training holds 3 images and ADE20K has 4; delete .* and run this again"):
        prepare(tmp_path, str(archive), None, COUNTS)


class _Ranges(http.server.BaseHTTPRequestHandler):
    content = b""
    asked: list[str | None] = []  # noqa: RUF012  (one server, one test)
    breaks = True

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        end = len(self.content) // 2 if type(self).breaks else len(self.content)
        type(self).breaks = False
        self.wfile.write(self.content[start:end])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    _Ranges.content, _Ranges.breaks, _Ranges.asked = write(tmp_path / "a.zip", members()).read_bytes(), True, []
    with http.server.HTTPServer(("127.0.0.1", 0), _Ranges) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/a.zip"
        running.shutdown()


def test_a_download_that_broke_off_goes_on_where_it_did(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path / "cache"))
    half = len(_Ranges.content) // 2
    with pytest.raises(RuntimeError, match=r"run this again to go on|Run this again to go on"):
        prepare(tmp_path / "root", server, None, COUNTS)
    prepare(tmp_path / "root", server, None, COUNTS)
    assert _Ranges.asked == [None, f"bytes={half}-"]
    assert (tmp_path / "cache/downloads" / f"{ade20k.NAME}.zip").read_bytes() == _Ranges.content


def test_an_address_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(RuntimeError, match=r"could not be downloaded: .*give its path with --zip"):
        prepare(tmp_path / "root", "http://127.0.0.1:9/a.zip", None, COUNTS)


def test_an_encrypted_archive_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = encrypt(write_wheel(tmp_path / "secret.zip", {"a.txt": b"text"}))
    said = r"^.*secret\.zip is encrypted at 'a\.txt', and nothing here has a password; give the archive as"
    with pytest.raises(ValueError, match=said):
        prepare(tmp_path / "root", str(path))
