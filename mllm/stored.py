"""Weights in several safetensors files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor


class Shards(Mapping[str, Tensor]):
    """The tensors of all safetensors files in a folder, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                file = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} is damaged or not a safetensors file ({error}); copy or download it again."
                ) from error
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        return self.files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
