"""What is known of VTAB-1k's images beyond the table of tasks: sizes, counts, and how many classes the lists show."""

from __future__ import annotations

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
