"""EuroSAT, ten kinds of land use seen by Sentinel-2, RGB (Helber et al., arXiv:1709.00029).

https://github.com/phelber/eurosat; MIT, the Copernicus data under their own free terms.

As TFDS's eurosat/rgb 2.0.0 reads it: the key is the class, `_` and the file name, so that `Forest_1.jpg` has the key
`Forest_Forest_1.jpg`; the class is what stands before the file name's first `_`. TFDS up to 4.0.1 used the path on
the machine that made the data set as the key, under the same version number: its first 800 images differ from
machine to machine. The keys here are in 4.4.0, which VPT used (tfds-nightly of January 2022), and later.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from vpeft.data.tables import VTAB
from vpeft.vtab1k.archives import Archive
from vpeft.vtab1k.readers.members import examples
from vpeft.vtab1k.source import Example, Needed, locate

ARCHIVES = (
    Needed(
        "EuroSAT.zip",
        "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
        sha256="8ebea626349354c5328b142b96d0430e647051f26efc2dc974c843f25ecf70bd",
        size=94_280_567,
    ),
)
HOW = ""


def read(folder: Path, task: str) -> dict[str, list[Example]]:
    """Examples of the only split, train (27,000).

    Raises:
        ValueError: The archive is missing, or a file name begins with no class.
    """
    archive = Archive(locate(folder, ARCHIVES[0], HOW))
    classes = VTAB["eurosat"].classes
    wanted = []
    for name in archive.below("2750"):
        file = PurePosixPath(name).name
        kind = file.split("_")[0]
        if kind not in classes:
            raise ValueError(f"{archive.path} holds '{name}', whose class '{kind}' is none of {', '.join(classes)}.")
        wanted.append((name, f"{kind}_{file}", classes.index(kind)))
    return {"train": examples(archive, wanted, len(classes))}
