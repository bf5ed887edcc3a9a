"""Writes segmentation_changes.safetensors with mmsegmentation's own transforms: extra dense.

    python -m tests.golden.make_segmentation

A photograph-like image (noise that is resized) and a mask of blocks; draws come from RandomState(seed) for each seed.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image
from safetensors.torch import save_file

from vpeft.data import mmseg_transforms
from vpeft.data.augment import Changes

SEEDS = 12
CHANGES = Changes(crop=(32, 64), scale=(256, 64), ratio=(0.8, 1.6), cat_max_ratio=0.6)
SIZES = [(96, 128), (24, 32), (49, 65), (37, 200)]


def inputs() -> dict[str, np.ndarray]:
    random = RandomState(0)
    image = random.randint(0, 256, (48, 64, 3)).astype(np.uint8)
    image[:24] = np.repeat(np.repeat(image[:6, :16], 4, 0), 4, 1)
    mask = np.kron(random.randint(0, 4, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    mask[:5, :40] = 255
    on_disk = random.randint(0, 151, (16, 16)).astype(np.uint8)
    on_disk[0] = 255
    return {"image": image, "mask": mask, "on_disk": on_disk}


def main() -> None:
    from vpeft.dense.mmseg import need, register

    register()
    mmcv, mmseg = need("mmcv.transforms"), need("mmseg.datasets.transforms")
    found = inputs()
    image, mask = found["image"], found["mask"]
    for height, width in SIZES:
        results = {"img": image[..., ::-1], "gt_seg_map": mask, "seg_fields": ["gt_seg_map"]}
        resized = mmcv.Resize((width, height))(results)
        found[f"resize/{height}x{width}/image"] = resized["img"][..., ::-1]
        found[f"resize/{height}x{width}/mask"] = resized["gt_seg_map"]
    kept = mmcv.Resize((200, 37), keep_ratio=True)({"img": image, "gt_seg_map": mask, "seg_fields": ["gt_seg_map"]})
    found["keep_ratio/200x37"] = np.array(kept["img"].shape[:2])
    cropper = mmseg.RandomCrop(CHANGES.crop, CHANGES.cat_max_ratio)
    for seed in range(SEEDS):
        with mmseg_transforms._as_global(RandomState(seed)):
            distorted = mmseg.PhotoMetricDistortion()({"img": image[..., ::-1]})["img"][..., ::-1]
        found[f"distort/{seed}"] = distorted
        with mmseg_transforms._as_global(RandomState(seed)):
            box = cropper.crop_bbox({"img": image, "gt_seg_map": mask})
        found[f"crop/{seed}"] = np.array(box)
        changed = mmseg_transforms.change(image, mask, CHANGES, RandomState(seed))
        found[f"change/{seed}/image"], found[f"change/{seed}/mask"] = changed
    found["reduced"] = _reduced(found["on_disk"], mmseg.LoadAnnotations())
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}
    made_by = ", ".join(f"{name} {version(name)}" for name in ("mmsegmentation", "mmcv-lite", "opencv-python"))
    save_file(tensors, Path(__file__).with_name("segmentation_changes.safetensors"), {"made_by": made_by})


def _reduced(on_disk: np.ndarray, load: Any) -> np.ndarray:
    """What LoadAnnotations makes of a PNG of ADE20K."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mask.png")
        Image.fromarray(on_disk).save(path)
        results = {"seg_map_path": str(path), "reduce_zero_label": True, "seg_fields": []}
        return load(results)["gt_seg_map"]


if __name__ == "__main__":
    main()
