"""Result rows made by hand, and reports on them."""

import copy

from vpeft.results.averages import TASKS

ROW = {
    "method": [{"name": "lora", "rank": 8, "targets": ["q", "v"]}],
    "protocol": {"name": "adapter-plus", "changed": {}},
    "backbone": {
        "name": "vit_base_patch16_224.orig_in21k",
        "pretrained": "auto",
        "image_size": [224, 224],
        "drop_path": 0.1,
        "weights": {"source": "hub", "origin": "orig_in21k", "sha256": "ab" * 32},
    },
    "head": {"init": "trunc_normal", "batch_norm": False},
    "preprocessing": {
        "normalization": {"name": "auto", "mean": [0.5] * 3, "std": [0.5] * 3},
        "resize": "squash",
        "interpolation": "bilinear",
        "augment": "none",
    },
    "data": {"format": "vtab-png", "lossy": False, "split": "train800val200", "batch_size": 64, "drop_last": True},
    "optim": {"name": "adamw", "lr": 1e-3},
    "train": {"epochs": 100, "devices": 1},
    "selection": {"rule": "last", "epoch": 100, "val_accuracy": None},
    "parameters": {"method": 294_912, "head": 7690, "adopted": 0, "frozen": 85_798_656, "total": 86_101_258},
}


def row(task="cifar100", seed=0, accuracy=0.5, **changes):
    """A result row; `data__split="train800"` changes row["data"]["split"]."""
    made = copy.deepcopy(ROW)
    for key, value in changes.items():
        *path, leaf = key.split("__")
        level = made
        for part in path:
            level = level[part]
        level[leaf] = value
    name = f"{task}-{seed}-{len(changes)}-{accuracy}-{sorted(changes.items(), key=str)}"
    return {"id": name, "date": "2026-01-01", **made, "task": task, "seed": seed, "test": {"accuracy": accuracy}}


def whole(seeds=(0,), shift=0.0, **changes):
    """Rows of all nineteen tasks: 0.30, 0.31, ..., a hundredth more a seed."""
    return [
        row(task, seed, 0.3 + 0.01 * number + 0.01 * index + shift, **changes)
        for number, task in enumerate(TASKS)
        for index, seed in enumerate(seeds)
    ]


def lines(found, table=0, section=0):
    """Rows of a table by their first cell."""
    return {line[0]: line[1:] for part in found.sections[section].tables[table].parts for line in part}


def verdicts(found):
    return {name: cells[0] for name, cells in lines(found).items()}
