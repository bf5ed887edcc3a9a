"""What is known of VTAB-1k's images beyond the table of tasks: sizes, counts, and how many classes the lists show."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Width and height where all images of a task have one size.
IMAGE_SIZE: dict[str, tuple[int, int]] = {
    "cifar100": (32, 32),
    "svhn": (32, 32),
    "patch_camelyon": (96, 96),
    "eurosat": (64, 64),
    "resisc45": (256, 256),
    "clevr_count": (480, 320),
    "clevr_dist": (480, 320),
    "dmlab": (480, 360),
    "dsprites_loc": (64, 64),
    "dsprites_ori": (64, 64),
    "smallnorb_azi": (96, 96),
    "smallnorb_ele": (96, 96),
}

# Classes that occur in a list, as counted in https://github.com/google-research/task_adaptation/issues/21: another
# choice of images would give other numbers.
CLASSES_SHOWN: dict[tuple[str, str], int] = {
    ("sun397", "train800"): 309,
    ("sun397", "train800val200"): 325,
    ("caltech101", "val200"): 86,
    ("cifar100", "val200"): 90,
    ("oxford_flowers102", "val200"): 90,
}

# Test images of every class, by the data sets' own pages.
TEST_COUNTS: dict[str, tuple[int, ...]] = {
    "cifar100": (100,) * 100,
    "dtd": (40,) * 47,
    "svhn": (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595),
}

# Hashes of the names of the 800 and the 200 images in the index that VPT's authors wrote down from TFDS:
# vtab_trainval_splits.json (github.com/KMnP/vpt, VTAB_SETUP.md; read in github.com/ChengHan111/E2VPT at c614821).
# svhn, dsprites and smallnorb have no names and are not in it.
CHOICE: dict[str, tuple[str, str]] = {
    "caltech101": (
        "31e9438e93e7629ff1168a9bbb35f0df05d44517863b73d4b49aea0e4a32fa99",
        "186a25b6ec6bbe40428ac3d993c6c89a1c9b17b2ae5814c3669ebd143f8dd759",
    ),
    "cifar100": (
        "ac3a4b7f6d6c32f787a0b7e609b785b286e47ff933fd9625016298693639a019",
        "7996f329fc85b9ac7daf4dc004fe27e8a082349d62c4e43bb7d8e8b4982228d3",
    ),
    "dtd": (
        "b6cbbd31253a34429e1e5f8427616a65f7cb229808809f7071d10a3e2d70f5f1",
        "1d58ab22f9e6af547a37c0860baa4bc04fa2c0f097926982422d761a8bcf9043",
    ),
    "oxford_flowers102": (
        "98f812d0d4ac1cc6f02f2760140173250caefaf94f8478c1ee45a23ad01fa6aa",
        "dd4a745fa168c95e9e3233b983432f9d28f2218b31f66a16c8d7125b128c5e24",
    ),
    "oxford_iiit_pet": (
        "c207b9671bc42ca0955b6a059243810d7a0bc9a6df7832e4d225dd0c3e528a29",
        "75e6848606b6b63cf7ed72c66cdcd2a0c1e1766eb2534c3466a5ed3f8170d3ff",
    ),
    "sun397": (
        "6e8ed9539b4b2eae3f42cf251dea7ac5c9f9f1473ec6bffc935e48337b28d50a",
        "73edd1682bcd496b433ac2e127c0cbdf6c30e80570404f69d20065223eb7a3d6",
    ),
    "patch_camelyon": (
        "21eaea5228a490c048a7ea3b28a79f4f470a26a4f9a66ee112af5b5ece573c37",
        "d6e3e99d74f635b8672b69ffc2294e9d8af570ee93234654c5f79573a74f251e",
    ),
    "eurosat": (
        "2a2d9a1c3370755c0717a420efbeb5501b2db4ed7dabfd9c9db423e092101c68",
        "b13e8f5667551e03061a1638d248de14cf780a43f2c0f9488106cd04332076f3",
    ),
    "resisc45": (
        "b283cadb71f06d56f43bb2f3b7eec68d44b47c38ef036641638c4f8f952718c5",
        "0058327227a2a0b15aa207ac8b64fddad90aedc4fbf790a8aa1c670f5de37a0c",
    ),
    "diabetic_retinopathy": (
        "287b231ea1feb0b9135d890096d6968dc2101599ba41595a7e76b768759a705d",
        "254204236451f6e1687401725dddf34b35586dfceb273b60d21522971246af1d",
    ),
    "clevr_count": (
        "2755742128ae24c0bca5299c342a54b0ed9a806bd1d9f39ca602159c74ffe21f",
        "6570e8229f7bc1b9e2e445b9959b6fcafb53e3bf5b3e3c4df9a799e93f56c2fb",
    ),
    "clevr_dist": (
        "2755742128ae24c0bca5299c342a54b0ed9a806bd1d9f39ca602159c74ffe21f",
        "6570e8229f7bc1b9e2e445b9959b6fcafb53e3bf5b3e3c4df9a799e93f56c2fb",
    ),
    "dmlab": (
        "4c94503cd539d6157c72d381c7a572ea7dba1744bfad43dd8ddd8c6f29331af2",
        "b2b983ef0fd0a506c395073b822a80b6275a630bd912b9ce36134abce17928ce",
    ),
    "kitti": (
        "c34261afd61ba4b4e386c15606dbe2d2d45884cf63c0b5967f112c4e9f38e51a",
        "bda747c1b2a21413ff3aa18dd79aa2e3f7a3ed7a1601cab211913d4bd8ae56dd",
    ),
}

# TFDS draws Caltech 101's split in the order in which the file system lists its folders, so no reader of the archive
# can know the published one; neither alphabetical order gives the index above.
NOT_SETTLED = frozenset({"caltech101"})


def published_name(task: str, key: str | int) -> str:
    """The name that the index has for a key, or for what TFDS stores as the name."""
    if task == "cifar100" and isinstance(key, int):
        return f"train_{key:05d}"
    text = str(key)
    if task == "caltech101":
        return text.rpartition("/")[2]
    if task in ("eurosat", "resisc45"):  # the key is the class, an underscore and the name, which begins with the class
        stem = text.rpartition("_")[0]
        half = len(stem) // 2
        return text[half + 1 :] if stem == f"{stem[:half]}_{stem[:half]}" else text
    return text


def index_differs(task: str, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Part, hash in the index and hash found, of the parts of a task that are not those of the index.

    Args:
        task: The task.
        rows: One an image, with its part and TFDS's key or name; parts without keys are not compared.
    """
    found = []
    for part, expected in zip(("train", "val"), CHOICE.get(task, ()), strict=False):
        keys = [row["key"] for row in rows if row["part"] == part]
        if None not in keys:
            own = names_hash(published_name(task, key) for key in keys)
            if own != expected:
                found.append((part, expected, own))
    return found


def is_published(task: str, rows: Sequence[Mapping[str, Any]]) -> bool | None:
    """Whether the choice is that of the index; None where names that the index has were not stored.

    Tasks that are not in the index have no names, and follow the rule by which they were cut.
    """
    if index_differs(task, rows):
        return False
    named = all(row["key"] is not None for row in rows if row["part"] != "test")
    return True if named or task not in CHOICE else None


def names_hash(names: Iterable[str]) -> str:
    """A hash of names in any order."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
