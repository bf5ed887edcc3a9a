"""Settings of dense prediction: what a section of a YAML file under configs/ade20k/ may hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class SegmentationDataConfig:
    """Images and masks; the changes of training images are mmsegmentation's for ADE20K, in its order.

    Args:
        task: `scenes` (embedded), `ade20k`, or any name for a folder of one's own.
        root: Directory of the data; None is the embedded set in the user cache.
        format: Layout under `root`; `auto` looks. `ade20k` is a folder whose class table is built in.
        split: `train` evaluates on val while it trains; `trainval` trains on both.
        crop: Side of a training crop; None is the backbone's own image size.
        short_side: Shorter side that images are resized to, before `ratio_min` and `ratio_max`; None is the crop's.
        long_side: Bound of the longer side; None is four times `short_side`, as 2048 to 512.
        ratio_min, ratio_max: Range of the random factor on both.
        cat_max_ratio: Largest share that one class may have of a crop's pixels; ten places are tried. 1 takes any.
        flip: Share of images that are mirrored.
        distort: Change brightness, contrast, saturation and hue, each of half of the images.
        reduce_zero_label: Id 0 on disk is ignored and k is class k - 1; None is what the data set says (ADE20K: true).
        absent: A class that the ground truth lacks but that was predicted: IoU `zero` (mmsegmentation), or `ignore` it
            in the mean (detectron2, used for open vocabularies).
        transforms: `mmseg` runs mmsegmentation's own (extra `dense`), `native` does the same with the same draws and
            needs nothing; `auto` is the former where the extra is installed. A row says which it was.
        batch_size: Images a step and a device.
        eval_batch_size: Images a step in evaluation, where all of a split have one size; else it is one.
        workers: Loader processes.
        drop_last: Leave out the last, smaller batch of an epoch.
    """

    task: str = "scenes"
    root: Path | None = None
    format: Literal["auto", "embedded", "ade20k", "folder"] = "auto"
    split: Literal["train", "trainval"] = "trainval"
    crop: int | None = None
    short_side: int | None = None
    long_side: int | None = None
    ratio_min: float = 0.5
    ratio_max: float = 2.0
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    distort: bool = True
    reduce_zero_label: bool | None = None
    absent: Literal["zero", "ignore"] = "zero"
    transforms: Literal["auto", "native", "mmseg"] = "auto"
    batch_size: int = 16
    eval_batch_size: int = 1
    workers: int = 0
    drop_last: bool = True
