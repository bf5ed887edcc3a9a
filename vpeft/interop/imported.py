"""What was read from a file of another project, as an adapter of this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vpeft import methods
from vpeft.backbones import Backbone
from vpeft.checkpoint import save_adapter
from vpeft.data.tables import ALIASES, EMBEDDED, VTAB, find_task
from vpeft.heads import LinearHead
from vpeft.normalization import normalization
from vpeft.schema import HeadConfig
from vpeft.tuned import Tuned


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Args:
        method: Entry of the method, every option written out.
        state: Its tensors.
        head: Tensors of a `LinearHead`; empty where the file has none.
        source: Where it comes from, for the manifest.
        notes: What to say about the file.
        normalization: Of its images, where nobody says otherwise.
        resize: How they were resized.
        interpolation: How they were resampled.
    """

    method: dict[str, Any]
    state: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    source: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    normalization: str = "auto"
    resize: str = "squash"
    interpolation: str = "auto"


@dataclass(frozen=True)
class Preparation:
    """What files of other projects do not say; None is what their code did.

    Args:
        task: Of VTAB-1k or the embedded suite, or a name; the classes of a known task are known too.
        classes: Names, in the order of the logits.
        normalization: `imagenet`, `inception`, `none`, or `auto`, the backbone's own.
        resize: `squash` or `crop`.
        interpolation: `bilinear`, `bicubic`, or `auto`, the backbone's own.
    """

    task: str | None = None
    classes: Sequence[str] | None = None
    normalization: str | None = None
    resize: str | None = None
    interpolation: str | None = None


def save(
    found: Found, backbone: Backbone, pretrained: str, output: Path | str, asked: Preparation | None = None
) -> list[str]:
    """Write what was found as an adapter.

    Args:
        found: Read for this backbone.
        backbone: As `create` built it; is changed.
        pretrained: What it was created with.
        output: The adapter, `*.safetensors`.
        asked: What the file does not say.

    Returns:
        Notes on what was in the file and what was not, one sentence each.

    Raises:
        ValueError: The classes are not known or not as many as the head has; a head of another width.
        OSError: The adapter could not be written.
    """
    output, asked = Path(output), asked or Preparation()
    if output.suffix != ".safetensors":
        raise ValueError(f"{output} is not a name for an adapter; it has to end in .safetensors.")
    task, classes, notes = _classes(found, asked)
    batch_norm = "norm.running_mean" in found.head
    head = LinearHead(backbone.dim, len(classes), "zero", batch_norm)
    if found.head:
        width = found.head["linear.weight"].shape[1]
        if width != backbone.dim:
            raise ValueError(
                f"The head in {found.source['file']} reads {width} features; {backbone.name} has {backbone.dim}. Give "
                "the backbone that it was trained on."
            )
        head.load_state_dict(dict(found.head))
    else:
        notes.append("the head is not in the file: it is zero here, and every class is as likely as another")
    (method,) = methods.build(found.method, backbone)
    method.load_state_dict(dict(found.state))
    tuned = Tuned(backbone, [method], head).eval()
    name = asked.normalization or found.normalization
    mean, std = normalization(name, backbone)
    interpolation = asked.interpolation or found.interpolation
    manifest = {
        "kind": "classification",
        "backbone": {
            "name": backbone.name,
            "pretrained": pretrained,
            "image_size": list(backbone.image_size),
            "seed": backbone.recipe.seed if backbone.recipe else 0,
        },
        "method": [found.method],
        "head": asdict(HeadConfig(init="zero", batch_norm=batch_norm)),
        "drop_path": 0.0,
        "classes": classes,
        "normalization": {"name": name, "mean": list(mean), "std": list(std)},
        "resize": asked.resize or found.resize,
        "interpolation": backbone.interpolation if interpolation == "auto" else interpolation,
        "task": task,
        "parameters": {
            part: sum(parameter.numel() for _, parameter in tuned.parameter_groups()[group])
            for part, group in (("method", "method"), ("neck", "neck"), ("head", "head"), ("adopted", "backbone"))
        },
        "result": {},
        "source": {"kind": "imported", **found.source, "head": bool(found.head)},
    }
    save_adapter(output, tuned, manifest)
    prepared = f"normalization {name}, resize {manifest['resize']}, {manifest['interpolation']}"
    return [*found.notes, *notes, f"images are prepared as: {prepared}"]


def _classes(found: Found, asked: Preparation) -> tuple[str, list[str], list[str]]:
    """Task, classes, and what to say of them."""
    count = len(found.head["linear.weight"]) if found.head else None
    task = asked.task or "imported"
    known = any(task in table for table in (EMBEDDED, VTAB, ALIASES))
    if asked.classes is not None:
        classes = list(asked.classes)
    elif known:
        task, entry = find_task(task)
        classes = list(entry.classes)
    elif count is not None:
        numbered = [f"class {i}" for i in range(count)]
        return task, numbered, [f"the file does not name its {count} classes: they are numbered"]
    else:
        raise ValueError(
            f"{found.source['file']} holds no head and says nothing of classes; give --classes, or --task with one of "
            "VTAB-1k's tasks."
        )
    if count is not None and len(classes) != count:
        raise ValueError(
            f"The head in {found.source['file']} has {count} classes, and {len(classes)} were named; name each once, "
            "in the order of its outputs."
        )
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ValueError(f"Two classes are named '{twice}'; give each a name of its own.")
    return task, classes, []
