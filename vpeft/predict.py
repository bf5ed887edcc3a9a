"""An adapter as a classifier of image files.

Shapes: B images, H W pixels, K classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vpeft.checkpoint import load_adapter
from vpeft.data.folder import SUFFIXES
from vpeft.data.folder import find_images as images_below
from vpeft.data.images import UnreadableImage, load_image
from vpeft.fetch import write_atomic
from vpeft.quiet import quieten


class Classifier(nn.Module):
    """A trained adapter on its backbone, with the preprocessing it was trained with.

    Args:
        path: The adapter.
        weights: File of the backbone's weights, where they are no longer where training found them.
        device: Torch's name of a device; None is cuda where there is one, else cpu.

    Raises:
        ValueError: The adapter, its backbone or the device cannot be had; see `load_adapter`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: Path | str, weights: str | None = None, device: str | None = None) -> None:
        super().__init__()
        quieten()
        self.device = find_device(device)
        self.tuned, self.manifest = load_adapter(path, weights)
        if (kind := self.manifest.get("kind", "classification")) != "classification":
            raise ValueError(f"{path} is an adapter of kind {kind}, and this needs one that classifies images.")
        self.classes: list[str] = self.manifest["classes"]
        for name in ("mean", "std"):
            values = torch.tensor(self.manifest["normalization"][name])
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)
        self.to(self.device).eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, K] on the CPU for uint8 images [B, 3, H, W] of the backbone's size."""
        return self.tuned((images.to(self.device).float() / 255 - self.mean) / self.std).float().cpu()

    def load(self, path: Path) -> Tensor:
        """A file as the uint8 image [3, H, W] that `forward` takes.

        Raises:
            UnreadableImage: It is missing or not a whole image.
        """
        return load_image(path, self.tuned.backbone.image_size, self.manifest["resize"], self.manifest["interpolation"])


def find_device(name: str | None) -> torch.device:
    """The device of that name; None is cuda where there is one, else cpu.

    Raises:
        ValueError: There is no such device.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either for a device that it was not built for
        raise ValueError(f"There is no device '{name}' here; give --device cpu, or leave it out.") from error
    return device


@dataclass(frozen=True)
class Prediction:
    """The likeliest classes of an image, best first, with their probabilities."""

    path: Path
    top: list[tuple[str, float]]


def find_images(paths: Sequence[Path | str]) -> list[Path]:
    """The files named, and for a folder every image below it.

    Raises:
        ValueError: A folder without images.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        inside = images_below(path) if path.is_dir() else [path]
        if not inside:
            raise ValueError(f"{path} holds no images; they are found by their suffix, {', '.join(SUFFIXES)}.")
        found += inside
    return found


def predict(
    classifier: Classifier, paths: Sequence[Path], top: int = 5, batch_size: int = 32
) -> Iterator[Prediction | UnreadableImage]:
    """Classify files in their order; one that cannot be read gives its error in its place.

    Args:
        classifier: Model and preprocessing.
        paths: Image files.
        top: How many classes, at most all.
        batch_size: Images decoded and classified at a time.
    """
    for start in range(0, len(paths), batch_size):
        batch = [_load(classifier, path) for path in paths[start : start + batch_size]]
        images = [image for image in batch if isinstance(image, Tensor)]
        rows = iter(classifier(torch.stack(images)).softmax(dim=1) if images else [])
        for path, image in zip(paths[start:], batch, strict=False):
            if isinstance(image, UnreadableImage):
                yield image
                continue
            values, indices = next(rows).topk(min(top, len(classifier.classes)))
            names = [classifier.classes[index] for index in indices.tolist()]
            yield Prediction(path, list(zip(names, values.tolist(), strict=True)))


def _load(classifier: Classifier, path: Path) -> Tensor | UnreadableImage:
    try:
        return classifier.load(path)
    except UnreadableImage as error:
        return error


def write_csv(path: Path | str, predictions: Sequence[Prediction]) -> None:
    """One line an image and rank: path, rank, class, probability.

    Raises:
        OSError: The file could not be written.
    """
    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["path", "rank", "class", "probability"])
    for one in predictions:
        lines.writerows([one.path, rank, name, f"{p:.6f}"] for rank, (name, p) in enumerate(one.top, start=1))
    write_atomic(Path(path), text.getvalue().encode("utf-8", "backslashreplace"))  # names that are no UTF-8
