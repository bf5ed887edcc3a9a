"""The data module of semantic segmentation: the same batches every time, mmsegmentation's changes of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
from torch import Tensor
from torch.utils.data import DataLoader

from vpeft.data import augment, embedded, masked
from vpeft.data.annotated import Annotated, Change, MaskedBatches
from vpeft.data.augment import Changes, rescaled
from vpeft.data.cache import memory_limit
from vpeft.data.loader import EpochSampler, make_loader, reached
from vpeft.data.masked import MaskedListing, MaskedSplit
from vpeft.data.masks import ClassTable
from vpeft.data.scenes import SCENES
from vpeft.dense.schema import SegmentationDataConfig
from vpeft.nearest import did_you_mean

Part = Literal["train", "val", "test"]


class SegmentationData(L.LightningDataModule):
    """Batches {"image": uint8 [B, 3, H, W], "mask": int64 [B, H, W], "index": int64 [B]}.

    In training H W is the crop. In evaluation the image is resized to the shorter side and its mask is not: both
    have sizes of their own, and B is 1 unless all images of the split have one size. Where the mask is
    `classes.ignore` (255; 65535 for more than 255 classes) a pixel has no class. `index` is the position in
    `files(part)`. Under Lightning's Trainer pass `use_distributed_sampler=False`.

    Args:
        config: What to read and how.
        image_size: (H, W) of the backbone, the crop where the config names none.
        seed: Decides order and changes, together with the epoch.
        pixel: RGB that crops larger than their image are filled up with: the backbone's mean, in levels.

    Raises:
        ValueError: Data or a part of it is missing or inconsistent; in `setup`, a mask does not fit.
        UnreadableImage: In `setup`; a file is not a whole image.
        ModuleNotFoundError: `transforms` is mmseg and the `dense` extra is missing.
    """

    def __init__(
        self,
        config: SegmentationDataConfig,
        image_size: tuple[int, int],
        seed: int,
        pixel: tuple[int, int, int] = (124, 116, 104),
    ) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        listing = locate(config)
        self.classes: ClassTable = listing.classes
        reduce = config.reduce_zero_label
        self.reduce_zero_label = listing.reduce_zero_label if reduce is None else reduce
        self.splits: dict[str, MaskedSplit] = {"train": listing.train, "val": listing.val, "test": listing.test}
        self.changes = _changes(config, image_size, self.classes.ignore, pixel)
        self._change, self.transforms = _change(config.transforms)
        self.provenance: dict[str, Any] = listing.provenance | {
            "counts": {part: len(split) for part, split in self.splits.items()},
            "classes": len(self.classes.names),
            "crop": list(self.changes.crop),
            "scale": list(self.changes.scale),
            "transforms": self.transforms,
        }
        self._pairs: dict[Part, Annotated] = {}
        self._start = (0, 0)

    @property
    def preparation(self) -> dict[str, Any]:
        """How an image of a file becomes one of a batch."""
        config, changes = self.config, self.changes
        return {
            "resize": "short_side",
            "interpolation": "bilinear",
            "scale": list(changes.scale),
            "crop": list(changes.crop),
            "ratio": list(changes.ratio),
            "cat_max_ratio": config.cat_max_ratio,
            "flip": config.flip,
            "distort": config.distort,
            "transforms": self.transforms,
        }

    def setup(self, stage: str | None = None) -> None:
        """Read what is not read yet: the test split alone for `test`, else everything.

        Sizes are compared everywhere; ids are checked where the masks fit into memory, and in what is evaluated. Of
        training masks that do not fit they are checked as these come.
        """
        parts: tuple[Part, ...] = ("test",) if stage == "test" else ("train", "val", "test")
        for part in parts:
            self._read(part)

    def files(self, part: Part) -> list[str]:
        """Paths of a split's images; `index` in a batch counts in this list."""
        return [str(file) for file in self.splits[part].images]

    def evaluated_sizes(self, part: Part) -> list[tuple[int, int]]:
        """(H, W) that the images of a split are resized to in evaluation, in the order of `files`."""
        return [rescaled(size, self.changes.scale) for size in self._read(part).sizes]

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled, changed batches."""
        return self._loader("train", self.config.batch_size, self._start)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]] | list[DataLoader[dict[str, Tensor]]]:
        """Batches of val, or no loader where there is none."""
        return self._evaluation("val") if self.splits["val"].images else []

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of test."""
        return self._evaluation("test")

    def state_dict(self) -> dict[str, int]:
        """Epoch and batch that a run resumed from here goes on with."""
        return reached(self.trainer, self._start)

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Make the next `train_dataloader` begin there."""
        self._start = (state_dict["epoch"], state_dict["batch"])

    def _evaluation(self, part: Part) -> DataLoader[dict[str, Tensor]]:
        same = len(set(self._read(part).sizes)) == 1
        return self._loader(part, self.config.eval_batch_size if same else 1)

    def _loader(self, part: Part, size: int, start: tuple[int, int] | None = None) -> DataLoader[dict[str, Tensor]]:
        training = part == "train"
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        pairs = self._read(part)
        last = training and self.config.drop_last
        sampler = EpochSampler(len(pairs), size, self.seed, training, last, rank, world, start or (0, 0))
        batches = MaskedBatches(pairs, self.changes, self.seed, self._change if training else None)
        return make_loader(batches, sampler, self.config.workers)

    def _read(self, part: Part) -> Annotated:
        if part not in self._pairs:
            # Every process of this machine keeps its own copy.
            share = memory_limit() // (self.trainer.num_devices if self.trainer else 1)
            left = share - sum(pairs.nbytes for pairs in self._pairs.values())
            split, checked = self.splits[part], part != "train"
            self._pairs[part] = Annotated(split, self.classes, self.reduce_zero_label, left, checked)
        return self._pairs[part]


def locate(config: SegmentationDataConfig) -> MaskedListing:
    """List the images and masks that a config asks for; the embedded set is made where it is missing.

    Raises:
        ValueError: The root or a part of it is missing; says which command makes it.
        RuntimeError: The embedded set is missing and its package cannot be fetched.
    """
    name = config.task
    if config.root is None:
        if name not in SCENES:
            known = "" if name == "ade20k" else f" {did_you_mean(name, [*SCENES, 'ade20k'])}"
            raise ValueError(
                f"data.root is not set, and of segmentation only {', '.join(SCENES)} is found without one.{known} "
                f"{_remedy(name)}"
            )
        return embedded.read_masked(embedded.prepared(name), name, config.split)
    root = config.root.expanduser()
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"data.root {root} {state}. {_remedy(name, root)}")
    if config.format == "embedded" or (config.format == "auto" and name in SCENES and (root / name).is_dir()):
        return embedded.read_masked(root / name, name, config.split)
    if config.format == "ade20k" or (config.format == "auto" and name == "ade20k"):
        inner = root / "ADEChallengeData2016"
        place = inner if inner.is_dir() else root
        if not (place / "annotations").is_dir():
            raise ValueError(f"data.root {root} does not hold ADE20K (no annotations/ in it). {_remedy(name, root)}")
        return masked.read_ade20k(place, config.split)
    # The row of a folder of one's own must not carry the name of a set that others have.
    return masked.read(root, root.resolve().name if name in (*SCENES, "ade20k") else name, config.split)


def _remedy(task: str, root: Path | None = None) -> str:
    where = f" --root {root}" if root else ""
    if task in SCENES:
        return f"This command makes it: python data_prep/embedded.py --tasks {task}{where}"
    if task == "ade20k":
        return f"This command makes it: python data_prep/ade20k.py{where or ' --root DIR'}"
    return (
        "For data of your own, point data.root at a folder with images/, masks/ and classes.txt. Data to try: python "
        f"data_prep/embedded.py --tasks scenes{where}"
    )


def _changes(
    config: SegmentationDataConfig, image_size: tuple[int, int], ignore: int, pixel: tuple[int, int, int]
) -> Changes:
    crop = image_size if config.crop is None else (config.crop, config.crop)
    short = config.short_side or min(crop)
    return Changes(
        crop=crop,
        scale=(config.long_side or 4 * short, short),
        ratio=(config.ratio_min, config.ratio_max),
        cat_max_ratio=config.cat_max_ratio,
        flip=config.flip,
        distort=config.distort,
        ignore=ignore,
        pixel=pixel,
    )


def _change(which: str) -> tuple[Change, str]:
    """What changes an image, and whose it is."""
    if which == "native" or (which == "auto" and find_spec("mmseg") is None):
        return augment.change, "native"
    from vpeft.data import mmseg_transforms

    mmseg_transforms.load()
    return mmseg_transforms.change, "mmseg"
