"""What tools/import.py does with its words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from vpeft import backbones
from vpeft.interop import imported, official, peft_format
from vpeft.interop.imported import Preparation
from vpeft.nearest import did_you_mean
from vpeft.schema import ConfigError
from vpeft.yaml_file import load_yaml

PEFT = "peft"


def run(
    kind: str,
    file: Path,
    output: Path,
    backbone: str,
    pretrained: str = "auto",
    image_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    asked: Preparation | None = None,
) -> list[str]:
    """Read a file of another project for a backbone and write it as an adapter.

    Args:
        kind: `peft`, or one of `official.KINDS`.
        file: The checkpoint, or peft's folder.
        output: The adapter.
        backbone: What it was trained on.
        pretrained: Weights of that.
        image_size: Side of its images; None is the backbone's own.
        options: Of the method, for what no file holds.
        asked: What the file does not say.

    Returns:
        Notes on what was in the file and what was not, one sentence each.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No such kind or backbone, or the file does not fit; says why.
        RuntimeError: The backbone's weights could not be had.
        OSError: The adapter could not be written.
    """
    if kind not in (PEFT, *official.KINDS):
        raise ValueError(f"There is no kind of file '{kind}'; {did_you_mean(kind, [PEFT, *official.KINDS])}")
    if kind == PEFT and options:
        raise ValueError(f"--method.{next(iter(options))} is given, and a folder of peft holds every option itself.")
    body = backbones.create(backbone, pretrained, image_size)
    found = peft_format.read(file, body) if kind == PEFT else official.read(kind, file, body, options)
    return imported.save(found, body, pretrained, output, asked)


def options_of(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Options of the method from `--method.scale 10`.

    Raises:
        ConfigError: Another key, or a value that is no YAML.
    """
    found = {}
    for key, text in pairs:
        section, _, name = key.partition(".")
        if section != "method" or not name:
            raise ConfigError(f"command line: there is no --{key}; options of the method are --method.NAME VALUE")
        try:
            found[name] = load_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"command line: the value of --{key} is not valid YAML: {text}") from error
    return found


def classes_of(text: str | None) -> list[str] | None:
    """Names of classes: a comma-separated list, or the lines of a file.

    Raises:
        ConfigError: The file is no UTF-8 text.
    """
    if text is None:
        return None
    path = Path(text)
    try:
        # os.path, because a long list is no name of a file, at which pathlib raises.
        names = path.read_text(encoding="utf-8").splitlines() if os.path.isfile(text) else text.split(",")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text ({error}); write one class a line") from error
    return [name.strip() for name in names if name.strip()]
