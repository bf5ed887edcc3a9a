"""PASCAL-Context for several dense tasks, in the folders of PASCAL_MT (Maninis et al., CVPR 2019, arXiv:1904.08918).

    JPEGImages/ID.jpg
    ImageSets/Context/train.txt, val.txt       one ID a line: 4998 and 5105
    semseg/VOC12/ID.png                        0 background, 1 ... 20 the classes of VOC, 255 ignored;
    semseg/pascal-context/ID.png                   from there where VOC12 has none
    human_parts/ID.png                         0 background, 1 ... 6; made from ID.mat
    normals_distill/ID.png                     n = 2 rgb / 255 - 1, the output of another network
    normals_valid/ID.png                       where it is believed: not 0; made from pascal-context/trainval/ID.mat
    sal_distill/ID.png                         above half is salient, again the output of networks

data_prep/pascal_context.py checks a download and makes the two folders that are not in it.

Shapes: H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vpeft.data.images import UnreadableImage, checked, load_image, open_image, upright_size, why
from vpeft.fetch import stays_inside

# fmt: off
SEMSEG = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
COUNTS = {"train": 4998, "val": 5105}
IGNORED = 255
COMMAND = "python data_prep/pascal_context.py --root"

# Where the labels of a task lie; the first that is there is read.
FOLDERS: dict[str, tuple[str, ...]] = {
    "semseg": ("semseg/VOC12", "semseg/pascal-context"),
    "human_parts": ("human_parts",),
    "saliency": ("sal_distill",),
    "normals": ("normals_distill",),
    "valid": ("normals_valid",),
}


class PascalContext:
    """Scenes {image: uint8 [3, H, W], semseg, human_parts, saliency: int64 [H, W], normals: float [3, H, W]}.

    255 is ignored in the first three, a vector of length 0 in normals. As in the authors' code (scale-lab/MTLoRA @
    333a375), images and labels are squashed to one size, images and normals bicubically, the others by the nearest
    pixel, and an image without any human part counts for nothing in human_parts. Differs: normals are of length 1 again
    after that, and 0 where the nearest pixel is not believed.

    Args:
        root: Folder of the layout above.
        part: train or val.
        tasks: Which labels to read.
        size: (H, W).

    Raises:
        ValueError: a folder, a list or a file is missing; the message says which and what makes it.
    """

    outputs: ClassVar[dict[str, int]] = {"semseg": len(SEMSEG), "human_parts": len(PARTS), "saliency": 1, "normals": 3}
    classes: ClassVar[dict[str, tuple[str, ...]]] = {"semseg": SEMSEG, "human_parts": PARTS}

    def __init__(self, root: Path, part: str, tasks: list[str], size: tuple[int, int]) -> None:
        self.root, self.tasks, self.size = root, tasks, size
        self.names = identifiers(root, part)
        needed = [*tasks, *(["valid"] if "normals" in tasks else [])]
        self.files = {task: [find(root, task, name) for name in self.names] for task in needed}
        for name in self.names:
            if not (image := root / "JPEGImages" / f"{name}.jpg").is_file():
                raise ValueError(f"{image} is missing, and {part}.txt names it; unpack the download again.")

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> dict[str, Tensor]:
        """Read one image and its labels.

        Raises:
            ValueError: a label is no mask of class numbers, has one outside the table, or another size than its image.
        """
        path = self.root / "JPEGImages" / f"{self.names[index]}.jpg"
        found = {"image": load_image(path, self.size, "squash", "bicubic")}
        for task in self.tasks:
            file = self.files[task][index]
            if task == "normals":
                found[task] = self._normals(file, self.files["valid"][index])
            elif task == "saliency":
                found[task] = (self._resized(_grey(file)) > 127).long()
            else:
                found[task] = self._mask(task, file, path)
        return found

    def _mask(self, task: str, file: Path, image: Path) -> Tensor:
        mask = indices(file, self.outputs[task])
        if (size := upright_size(image)) != mask.shape:
            raise ValueError(
                f"{file} is {mask.shape[1]}x{mask.shape[0]} and its image {size[1]}x{size[0]}; a mask has the size of "
                "its image."
            )
        found = self._resized(mask).long()
        return torch.full_like(found, IGNORED) if task == "human_parts" and not found.any() else found

    def _resized(self, array: np.ndarray) -> Tensor:
        height, width = self.size
        return torch.from_numpy(np.array(Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST)))

    def _normals(self, file: Path, valid: Path) -> Tensor:
        vectors = torch.from_numpy(2 * _open(file, "RGB").astype(np.float32) / 255 - 1).permute(2, 0, 1)
        believed = torch.from_numpy(_grey(valid) > 0)
        if believed.shape != vectors.shape[1:]:
            believed = F.interpolate(believed[None, None].float(), vectors.shape[1:])[0, 0] > 0
        resized = F.interpolate((vectors * believed)[None], self.size, mode="bicubic", align_corners=False)[0]
        # A cubic goes below zero beside an edge, where it would point the other way.
        return F.normalize(resized, dim=0) * F.interpolate(believed[None, None].float(), self.size)[0]


def identifiers(root: Path, part: str) -> list[str]:
    """The names in a list of images.

    Raises:
        ValueError: there is no such list, it is empty, or names an image twice.
    """
    file = root / "ImageSets" / "Context" / f"{part}.txt"
    if not file.is_file():
        raise ValueError(f"{file} is missing. data.root is the folder PASCAL_MT, which holds JPEGImages and ImageSets.")
    try:
        names = file.read_text("utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text ({error}); unpack the download again.") from error
    if odd := next((name for name in names if not stays_inside(name)), None):
        raise ValueError(f"{file} names '{odd}', which leads out of the folder; unpack the download again.")
    if not names:
        raise ValueError(f"{file} names no image; unpack the download again.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{file} names {twice} twice; remove one of the lines.")
    return names


def find(root: Path, task: str, name: str) -> Path:
    """The file of a label.

    Raises:
        ValueError: there is none.
    """
    for folder in FOLDERS[task]:
        if (file := root / folder / f"{name}.png").is_file():
            return file
    made = task in ("human_parts", "valid")
    raise ValueError(
        f"{root / FOLDERS[task][0] / name}.png is missing. "
        + (
            f"It is made by: {COMMAND} {root}"
            if made
            else f"The download is not whole; check it with: {COMMAND} {root}"
        )
    )


def indices(file: Path, classes: int) -> np.ndarray:
    """A mask of class numbers, [H, W] uint8.

    Raises:
        ValueError: the file holds colours or 16 bits a pixel, or a number outside of the classes and 255.
    """
    mask = _open(file)
    if mask.ndim != 2 or mask.dtype != np.uint8:
        what = "colours" if mask.ndim > 2 else f"{mask.dtype} values"
        raise ValueError(f"{file} holds {what}; save class numbers as one channel of 8 bits a pixel.")
    wrong = mask[(mask >= classes) & (mask != IGNORED)]
    if wrong.size:
        raise ValueError(
            f"{file} holds the class {wrong[0]}; there are {classes}, from 0 on, and 255 is ignored. Correct the mask."
        )
    return mask


def _grey(file: Path) -> np.ndarray:
    return _open(file, "L")


def _open(file: Path, mode: str | None = None) -> np.ndarray:
    try:
        with open_image(checked(file)) as image:
            return np.array(image.convert(mode) if mode else image)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's decoders raise whatever their format module meets
        raise ValueError(f"{file} is not a whole image ({why(error)}); unpack the download again.") from error
