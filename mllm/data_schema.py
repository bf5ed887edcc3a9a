"""Settings of images with text: what the `data` section of a YAML file under configs/mllm/ may hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

# Sets that need no files: published in a package, or drawn by a program.
SETS = ("easyvqa", "easyvqa_captions", "rendered", "rendered_pairs")


@dataclass
class FilesConfig:
    """Files with the texts, names or patterns (`shard-*.tar`) relative to `data.root`.

    What a file is, is seen from its content: LLaVA's conversations (JSON, JSONL), captions (JSON, JSONL, CSV, TSV), or
    WebDataset's shards (TAR).

    Args:
        train: What is trained on.
        val: What the loss is watched on; none is watched where it is empty.
        test: What is evaluated.
    """

    train: list[str] = field(default_factory=list)
    val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


@dataclass
class DataConfig:
    """Images and text.

    Args:
        task: `easyvqa` or `easyvqa_captions` (published in a package), `rendered` or `rendered_pairs` (drawn by a
            program); any other name is that of the files.
        root: Folder of files and images; None for the sets that need none.
        files: Conversations, captions or shards.
        template: How a conversation is written; a key of mllm/templates.yaml, `chat` for the tokenizer's own template,
            or the path of a YAML file with one.
        system: System text; None is the template's own.
        question: How a question of `easyvqa` is put, with {} for it. LLaVA-1.5 adds "\\nAnswer the question using a
            single word or phrase."
        count: Training images that a rendered set draws.
        test_limit: Test samples that are kept, the first by the hashes of their ids; None is all. `test_of` of a row
            says of how many.
        max_length: Longest sequence in tokens, those of images among them. 2048 in LLaVA.
        pack: Put several samples into one row of `max_length`; they do not see each other.
        group_by_length: Make batches of samples of one length, with images or without, as LLaVA's
            group_by_modality_length.
        batch_size: Sequences (rows where they are packed) a step and a device.
        eval_batch_size: Sequences a step in evaluation.
        aspect: `pad` an image to the shape of the input with the mean colour (LLaVA-1.5), `squash` it, or `crop` its
            middle.
        augment: `crop_flip` trains on a random crop of every image, another one in every epoch, brought to the shape of
            the input whatever `aspect` is, and mirrors half of them (BLIP-2).
        crop_scale: Least and largest share of an image's area that is cropped; .5 and 1 in LAVIS.
        interpolation: `auto` is the vision tower's own.
        on_missing: What an image does that is missing or cannot be read: `stop`, or `skip` its sample and count it.
        workers: Loader processes.
    """

    task: str = "easyvqa"
    root: Path | None = None
    files: FilesConfig = field(default_factory=FilesConfig)
    template: str = "llava_v1"
    system: str | None = None
    question: str = "{}"
    count: int = 4000
    test_limit: int | None = None
    max_length: int = 2048
    pack: bool = False
    group_by_length: bool = False
    batch_size: int = 16
    eval_batch_size: int = 32
    aspect: Literal["pad", "squash", "crop"] = "pad"
    augment: Literal["none", "crop_flip"] = "none"
    crop_scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    on_missing: Literal["stop", "skip"] = "stop"
    workers: int = 0

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Settings that are at odds: a dotted key, and the sentence that says so."""
        if self.pack and self.group_by_length:
            yield (
                "data.group_by_length",
                "data.pack fills every row, so there are no lengths left to group; turn data.pack or "
                + "data.group_by_length off",
            )
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            yield (
                "data.crop_scale",
                f"data.crop_scale must be two shares from above 0 to 1, the smaller first, not {self.crop_scale}",
            )
        if "{}" not in self.question:
            yield "data.question", f"data.question must have {{}} where the question goes, and is '{self.question}'"
        counts = {"data.max_length": self.max_length, "data.count": self.count, "data.test_limit": self.test_limit}
        for key, value in counts.items():
            if value is not None and value < 1:
                yield key, f"{key} must be at least 1, not {value}"
        if self.task in SETS and self.files.train:
            yield "data.files", f"data.task {self.task} needs no files; give another data.task, such as the files' name"
        if self.task not in SETS and not self.files.train:
            yield (
                "data.files",
                f"data.task '{self.task}' has no files; give data.files.train, or a set that needs none: "
                + ", ".join(SETS),
            )
