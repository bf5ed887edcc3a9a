"""Made-up rows of whole suites, complete as a run writes them: no number of them was measured."""

import math
import random
import zlib

from tests.results.rows import row
from vpeft.data.tables import EMBEDDED
from vpeft.results.averages import TASKS

# Options, trained parameters on ViT-B/16, points above the linear probe, ms a step and MiB.
METHODS = {
    "linear": ({}, 0, 0.0, 1240, 535),
    "bitfit": ({}, 102_912, 9.5, 2670, 2038),
    "vpt": ({"prompts": 10, "deep": True}, 92_160, 10.5, 3135, 2063),
    "adaptformer": ({"bottleneck": 64}, 1_189_632, 13.9, 2580, 2150),
    "lora": ({"rank": 8, "targets": ["q", "v"]}, 294_912, 14.0, 2700, 2136),
    "ssf": ({}, 205_824, 12.8, 3075, 3377),
    "adapter_plus": ({"bottleneck": 8}, 165_984, 14.6, 2390, 2310),
    "full": ({}, 85_798_656, 4.0, 3845, 3147),
}
VERSIONS = {"python": "3.11.7", "vpeft": "0.1.0", "torch": "2.13.0+cpu", "timm": "1.0.31"}


def suite(tasks=TASKS, methods=METHODS, seeds=(18, 25, 45), **changes):
    """Rows of every task, method and seed."""
    return [
        finished(task, name, seed, *methods[name], **changes) for task in tasks for name in methods for seed in seeds
    ]


def embedded(methods=METHODS, seeds=(0, 1)):
    """Rows of the embedded tasks."""
    data = {"data__format": "embedded", "backbone__name": "vit_small_patch14_saliency", "protocol": None}
    rows = suite(list(EMBEDDED), methods, seeds, **data)
    for one in rows:
        one["data"]["synthetic"] = EMBEDDED[one["task"]].synthetic
    return rows


def finished(task, name, seed, options, params, gain, step, peak, git="1a2b3c4d5e" * 4, **changes):
    """A row with everything that a run writes."""
    chance = random.Random(zlib.crc32(f"{task} {name} {seed}".encode()))
    easy = random.Random(task).uniform(-1.5, 1.0)
    logit = easy + 0.11 * gain + chance.gauss(0, 0.06) + random.Random(task + name).gauss(0, 0.18)
    accuracy = round(1 / (1 + math.exp(-logit)), 4)
    made = row(task, seed, accuracy, method=[{"name": name, **options}], parameters__method=params, **changes)
    made["test"] |= {"ece": round(0.02 + 0.09 * chance.random() * (1 - accuracy), 4), "loss": 1.0, "images": 1000}
    made["train"] = made["train"] | {"precision": "32-true"}
    seconds = step * chance.uniform(0.97, 1.06) / 1e3
    return made | {
        "id": f"{task}-{name}-{seed}",
        "kind": "classification",
        "date": f"2026-11-{10 + seed % 18}T12:00:00+00:00",
        "time": {"wall_seconds": 1600 * seconds, "step_seconds": seconds, "images_per_second": 64 / seconds},
        "memory": {"peak_bytes": int(peak * 2**20 * chance.uniform(0.99, 1.02)), "of": "the process"},
        "device": {"name": "cpu", "processes": 1, "threads": 2},
        "versions": VERSIONS,
        "git": git,
    }
