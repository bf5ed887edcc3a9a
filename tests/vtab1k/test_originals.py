"""From the original archives to the images of a task."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from vpeft.vtab1k import originals
from vpeft.vtab1k.readers import reader


def test_what_an_archive_of_unknown_content_lacks_comes_with_where_the_known_one_is(tmp_path: Path) -> None:
    (needed,) = reader("cifar100").ARCHIVES
    with tarfile.open(tmp_path / needed.name, "w:gz") as archive:
        for name in ("train.bin", "test.bin"):
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = 5
            archive.addfile(member, io.BytesIO(b"short"))
    said = rf"has 5 bytes, which is no multiple of .* fetch again {needed.name} from {re.escape(needed.url)}"
    with pytest.raises(ValueError, match=said):
        originals.select("cifar100", tmp_path, accept_other=True)
