"""How VTAB-1k cuts its three lists out of TFDS's splits (google-research/task_adaptation d7630d3, data/*.py).

train800 = train[:800]      val200 = SPLIT[a : a + 200]      test = SPLIT[b :]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TRAIN, VAL = 800, 200


@dataclass(frozen=True)
class Cut:
    """Where a task's validation and test images come from.

    Args:
        sizes: Examples in every TFDS split that the task uses.
        val: TFDS split of val200.
        test: TFDS split of the test images.
        before_val: Percentages of the split that lie before val200; each is rounded down.
        before_test: The same for test.
    """

    sizes: Mapping[str, int]
    val: str = "validation"
    test: str = "test"
    before_val: tuple[int, ...] = field(default=())
    before_test: tuple[int, ...] = field(default=())


_NORB = Cut({"train": 24_300, "test": 24_300}, val="test", before_test=(50,))
_CLEVR = Cut({"train": 70_000, "validation": 15_000}, val="train", before_val=(90,), test="validation")
_DSPRITES = Cut({"train": 737_280}, val="train", before_val=(80,), test="train", before_test=(80, 10))

CUTS: dict[str, Cut] = {
    "caltech101": Cut({"train": 3060, "test": 6084}, val="train", before_val=(90,)),
    "cifar100": Cut({"train": 50_000, "test": 10_000}, val="train", before_val=(90,)),
    "dtd": Cut({"train": 1880, "validation": 1880, "test": 1880}),
    "oxford_flowers102": Cut({"train": 1020, "validation": 1020, "test": 6149}),
    "oxford_iiit_pet": Cut({"train": 3680, "test": 3669}, val="train", before_val=(80,)),
    "sun397": Cut({"train": 76_128, "validation": 10_875, "test": 21_750}),
    "svhn": Cut({"train": 73_257, "test": 26_032}, val="train", before_val=(90,)),
    "patch_camelyon": Cut({"train": 262_144, "validation": 32_768, "test": 32_768}),
    "eurosat": Cut({"train": 27_000}, val="train", before_val=(60,), test="train", before_test=(60, 20)),
    "resisc45": Cut({"train": 31_500}, val="train", before_val=(60,), test="train", before_test=(60, 20)),
    "diabetic_retinopathy": Cut({"train": 35_126, "validation": 10_906, "test": 42_670}),
    "clevr_count": _CLEVR,
    "clevr_dist": _CLEVR,
    "dmlab": Cut({"train": 65_550, "validation": 22_628, "test": 22_735}),
    "kitti": Cut({"train": 6347, "validation": 423, "test": 711}),
    "dsprites_loc": _DSPRITES,
    "dsprites_ori": _DSPRITES,
    "smallnorb_azi": _NORB,
    "smallnorb_ele": _NORB,
}

# A file that is no image may be drawn among Caltech 101's training images: then there are 3,059 and 6,085, as in TFDS's
# catalogue; https://github.com/BenediktAlkin/vtab1k-pytorch asserts 6,085 too.
TOLERANCE = {("caltech101", "train"): 1, ("caltech101", "test"): 1}


def parts(task: str, sizes: Mapping[str, int]) -> dict[str, tuple[str, range]]:
    """TFDS split and positions in it of `train`, `val` and `test`.

    Args:
        task: The task.
        sizes: Examples that were found in every TFDS split.

    Raises:
        ValueError: A split is missing, or its size is not TFDS's: one missing example moves all that follow.
    """
    cut = CUTS[task]
    for split, expected in cut.sizes.items():
        found = sizes.get(split, 0)
        if abs(found - expected) > TOLERANCE.get((task, split), 0):
            raise ValueError(
                f"{task}: {found:,} examples were found for TFDS's split '{split}' and not {expected:,}; with another "
                "number VTAB-1k's choice of images is not the published one. The archive is incomplete or another "
                "version; fetch it again."
            )
    start = sum(sizes[cut.val] * percent // 100 for percent in cut.before_val)
    end = sum(sizes[cut.test] * percent // 100 for percent in cut.before_test)
    return {
        "train": ("train", range(TRAIN)),
        "val": (cut.val, range(start, start + VAL)),
        "test": (cut.test, range(end, sizes[cut.test])),
    }
