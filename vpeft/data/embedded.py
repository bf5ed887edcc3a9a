"""Read a task of the embedded suite: VTAB-1k's layout, or images and masks, and a manifest of every file's sha256."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from vpeft.data import masked, vtab
from vpeft.data.listing import Listing
from vpeft.data.masked import MaskedListing
from vpeft.data.recipes import RECIPES, Recipe
from vpeft.data.scenes import SCENES
from vpeft.fetch import entries_sha256
from vpeft.json_file import parsed

MANIFEST = "manifest.json"
_FORM = {"files": {str: str}, "content": str, "statement": str | None, "licence": str | None, "packages": list}


def prepared(name: str) -> Path:
    """The task's folder in the user cache, made first where it is missing or damaged."""
    from vpeft.data.prepare import prepare, suite_dir

    return prepare(name, suite_dir())


def find_recipe(name: str) -> Recipe | None:
    """How a task is made, be it of classification or of segmentation."""
    return RECIPES.get(name) or SCENES.get(name)


def read(folder: Path, name: str, split: Literal["train800", "train800val200"]) -> Listing:
    """List a task's files and labels after checking every file.

    Raises:
        ValueError: The folder was not made by data_prep/embedded.py, or a file differs from its manifest.
    """
    facts = _facts(folder, name)
    listing = vtab.read_lists(folder, name, split)
    # JPEG files in here are the published originals, byte for byte.
    listing.provenance.update(facts, format="embedded", lossy=False, warning=None)
    return listing


def read_masked(folder: Path, name: str, split: Literal["train", "trainval"]) -> MaskedListing:
    """List the images and masks of a segmentation task after checking every file.

    Raises:
        ValueError: As `read`.
    """
    facts = _facts(folder, name)
    listing = masked.read(folder, name, split)
    listing.provenance.update(facts, format="embedded", synthetic=True)
    return listing


def _facts(folder: Path, name: str) -> dict[str, Any]:
    if fault := find_fault(folder, name):
        raise ValueError(
            f"{folder} is not a whole embedded task: {fault}. This command makes it anew: "
            f"python data_prep/embedded.py --tasks {name} --root {folder.parent}"
        )
    manifest = json.loads((folder / MANIFEST).read_text())
    return {key: manifest[key] for key in ("statement", "licence", "packages")}


def find_fault(folder: Path, name: str) -> str | None:
    """What is wrong with a task's folder, or None."""
    try:
        manifest: dict[str, Any] | None = parsed((folder / MANIFEST).read_bytes(), _FORM)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    if manifest is None:
        return f"{MANIFEST} is damaged"
    files: dict[str, str] = manifest["files"]
    recipe = find_recipe(name)
    if recipe is None or manifest["content"] != recipe.content:
        return "it was made by another version, or for another task"
    if manifest.get("sha256", same := entries_sha256(manifest)) != same:  # those of older versions have none
        return f"{MANIFEST} was changed after it was written"
    for file, sha256 in files.items():
        try:
            found = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        except OSError as error:
            return f"{file} cannot be read ({error.strerror})"
        if found != sha256:
            return f"{file} is not what its sha256 says"
    return None
