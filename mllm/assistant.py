"""An adapter in use: the model that it makes, and how it is shown images and told texts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from transformers.utils import logging

from mllm.adapter import PREPARATION, load_adapter
from mllm.connectors import Instructed
from mllm.data.batches import Writing
from mllm.data.images import Look
from mllm.templates import restored
from vpeft.adapter_file import check_manifest
from vpeft.predict import find_device


class Assistant:
    """A trained model, with images and conversations prepared as in its training.

    Args:
        path: The adapter.
        weights: File of the vision tower's weights, where they are no longer where training found them.
        language: The language model, `hf:FOLDER`, where it is no longer where training found it.
        device: Torch's name of a device; None is cuda where there is one, else cpu.
        system: A system text in place of the one that training used.

    Raises:
        ValueError: The adapter, its models or the device cannot be had (`mllm.adapter.load_adapter`).
        FileNotFoundError: There is no such adapter.
        RuntimeError: Weights could not be fetched.
    """

    def __init__(
        self,
        path: Path | str,
        weights: str | None = None,
        language: str | None = None,
        device: str | None = None,
        system: str | None = None,
    ) -> None:
        self.device = find_device(device)
        self.path = Path(path)
        if not sys.stderr.isatty():
            logging.disable_progress_bar()  # transformers draws one for every model it loads
        self.model, self.manifest = load_adapter(path, weights, language)
        check_manifest(path, self.manifest, {"preparation": PREPARATION})
        self.model.to(self.device)
        prepared: dict[str, Any] = self.manifest["preparation"]
        height, width = prepared["image_size"]
        red, green, blue = prepared["fill"]
        self.look = Look((height, width), prepared["aspect"], prepared["interpolation"], (red, green, blue))
        about, connector = self.model.about, self.model.connector
        self.writing = Writing(
            restored(prepared, self.path, system),
            about.tokenizer,
            connector.tokens,  # type: ignore[arg-type]
            about.context,
            about.tokenizer if isinstance(connector, Instructed) else None,
        )

    @property
    def ends(self) -> list[int]:
        """What ends an answer in its template."""
        return [self.writing.template.stop(self.writing.tokenizer)]
