"""Members are read where they lie, and an archive that leads out of itself or is damaged is refused."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.data.wheels import encrypt, write_wheel
from tests.vtab1k.fakes import write_tar
from vpeft.vtab1k.archives import Archive, decode

FILES = {"a/1.txt": b"one", "a/2.txt": b"two" * 1000, "b/3.txt": b"three"}


def written(path: Path, kind: str) -> Path:
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
            for name, data in FILES.items():
                opened.writestr(name, data)
    elif kind == "folder":
        for name, data in FILES.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    else:
        # A leading ./ is how tar writes a whole folder.
        write_tar(path, ((f"./{name}", data) for name, data in FILES.items()), f"w:{kind}")
    return path


@pytest.mark.parametrize("kind", ["zip", "", "gz", "bz2", "xz", "folder"])
def test_every_kind_gives_the_same_names_and_bytes_in_any_order(kind: str, tmp_path: Path) -> None:
    archive = Archive(written(tmp_path / "archive", kind))
    assert archive.names == list(FILES)
    for name in ["b/3.txt", "a/1.txt", "a/2.txt", "a/1.txt"]:
        assert archive.read(name) == FILES[name]
    assert archive.member("a/2.txt").part(1, 4).read() == b"wotw"
    assert archive.below("a") == ["a/1.txt", "a/2.txt"]
    assert "a/1.txt" in archive
    assert "a" not in archive


def test_a_missing_member_names_a_near_one(tmp_path: Path) -> None:
    archive = Archive(written(tmp_path / "archive", "zip"))
    with pytest.raises(ValueError, match=r"holds no 'a/l.txt'; it has, for example, a/[12].txt"):
        archive.read("a/l.txt")


@pytest.mark.parametrize("name", ["../out.txt", "/etc/passwd", "a/../../out.txt", "a\\..\\out.txt"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_path_that_leads_out_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    if kind == "tar":
        write_tar(path, [(name, b"x")])
    else:
        with zipfile.ZipFile(path, "w") as opened:
            opened.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(ValueError, match=r"which leads out of the archive; it is not used"):
        Archive(path)


def link(path: Path, target: str, kind: bytes) -> Path:
    with tarfile.open(path, "w:gz") as opened:
        for name, data in FILES.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("a/link")
        info.type, info.linkname = kind, target
        opened.addfile(info)
    return path


@pytest.mark.parametrize(
    ("target", "kind"), [("../../out", tarfile.SYMTYPE), ("/etc/passwd", tarfile.SYMTYPE), ("../x", tarfile.LNKTYPE)]
)
def test_a_link_that_leads_out_is_refused(target: str, kind: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"'a/link -> {target}', which leads out"):
        Archive(link(tmp_path / "archive", target, kind))


@pytest.mark.parametrize(("target", "kind"), [("1.txt", tarfile.SYMTYPE), ("a/1.txt", tarfile.LNKTYPE)])
def test_a_link_within_is_the_file_it_points_to(target: str, kind: bytes, tmp_path: Path) -> None:
    assert Archive(link(tmp_path / "archive", target, kind)).read("a/link") == b"one"


def test_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is a device and no file"):
        Archive(link(tmp_path / "archive", "", tarfile.CHRTYPE))


def test_a_link_in_a_zip_and_one_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as opened:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match="has the link 'link'"):
        Archive(tmp_path / "archive.zip")
    folder = written(tmp_path / "folder", "folder")
    (tmp_path / "secret").write_text("x")
    os.symlink(tmp_path / "secret", folder / "a" / "link")
    with pytest.raises(ValueError, match="'a/link', which leads out"):
        Archive(folder)


@pytest.mark.parametrize("kind", ["zip", "", "gz", "xz"])
def test_an_archive_that_is_cut_short_is_told(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "archive", kind)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    with pytest.raises(ValueError, match=r"archive is (not a whole zip or tar archive|cut short)"):
        Archive(path).read("b/3.txt")


def test_what_is_no_archive_or_missing_is_told(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>404</html>" * 100)
    with pytest.raises(ValueError, match=r"page.html is not a whole zip or tar archive .*fetch it again"):
        Archive(tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"gone.zip is missing"):
        Archive(tmp_path / "gone.zip")


def test_what_is_no_image_is_told() -> None:
    with pytest.raises(ValueError, match=r"'x.jpg' is not a whole image"):
        decode(b"nothing", "'x.jpg'")


def test_an_encrypted_archive_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = encrypt(write_wheel(tmp_path / "secret.zip", {"a.txt": b"text"}))
    said = r"^.*secret\.zip is encrypted at 'a\.txt', and nothing here has a password; give the archive as"
    with pytest.raises(ValueError, match=said):
        Archive(path)
