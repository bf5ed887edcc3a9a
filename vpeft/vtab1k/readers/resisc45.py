"""NWPU-RESISC45, 45 scenes seen from the air (Cheng et al., Proc. IEEE 2017, arXiv:1703.00121).

https://gcheng-nwpu.github.io; for research, its page states no licence.

As TFDS's resisc45 3.0.0 reads it: the key is the class, `_` and the file name, so that `airport_001.jpg` has the key
`airport_airport_001.jpg`; the class is the folder. TFDS up to 4.0.1 used the path on the machine that made the data
set as the key, under the same version number: its first 800 images differ from machine to machine. The keys here are
in 4.4.0, which VPT used (tfds-nightly of January 2022), and later.
"""

from __future__ import annotations

from pathlib import Path

from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples, ranks
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (Needed("NWPU-RESISC45", "https://1drv.ms/u/s!AmgKYzARBl5ca3HNaHIlzp_IXjs", manual=True),)
HOW = (
    "Open that link (the authors' OneDrive) in a browser, download NWPU-RESISC45.rar and unpack it there with "
    "`unar NWPU-RESISC45.rar` or `unrar x NWPU-RESISC45.rar`, so that NWPU-RESISC45/airplane/airplane_001.jpg and the "
    "other 31,499 images lie in the folder of archives."
)
_CLASSES = 45


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the only split, train (31,500).

    Raises:
        ValueError: The folder NWPU-RESISC45 is missing or has not 45 classes.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    files = [(name, *name.split("/")) for name in archive.names if name.endswith(".jpg") and name.count("/") == 1]
    label = ranks({kind for _, kind, _ in files}, _CLASSES, archive.path)
    return {"train": examples(archive, [(name, f"{kind}_{file}", label[kind]) for name, kind, file in files], _CLASSES)}
