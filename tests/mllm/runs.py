"""Multimodal runs that take a second: random models on drawn shapes."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from mllm.data import rendered
from mllm.data_schema import DataConfig
from mllm.schema import LanguageConfig, MLLMConfig, OptimConfig, TrainConfig, VisionConfig
from mllm.task import Instruct
from vpeft.tasks.resuming import Interrupted

LORA: dict[str, Any] = {"name": "lora", "r": 2, "dropout": 0.3}


def write_language(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, **sizes: Any) -> str:
    """A folder with a random LLaMA; its name for `mllm.language.load`.

    Args:
        folder: Is made.
        tokenizer: Its own; None knows the words of drawn images.
        sizes: Of its configuration.
    """
    own: Any = tokenizer or rendered.tokenizer()
    config = LlamaConfig(
        vocab_size=len(own),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        eos_token_id=own.eos_token_id,
        **sizes,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return f"hf:{folder}"


def tiny_config(model: str, output: Path, data: dict[str, Any] | None = None, /, **change: Any) -> MLLMConfig:
    """15 samples in batches of 4, 7 steps: an epoch of 4 batches and most of another.

    Args:
        model: Of `write_language`.
        output: Folder of the run's folder, `run`.
        data: Changes of its data.
        change: Other settings; sections are merged.
    """
    config = MLLMConfig(
        vision=VisionConfig("test_vit.r160_in1k", "none", image_size=32),
        connector={"name": "mlp"},
        language=LanguageConfig(model),
        language_method=dict(LORA),
        data=DataConfig(
            task="rendered",
            template="bare",
            count=5,
            max_length=40,
            batch_size=4,
            eval_batch_size=150,
            aspect="squash",
        ),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=7, accelerator="cpu"),
        output=output,
        name="run",
    )
    change = {"data": data or {}} | change
    for name, value in change.items():
        section = getattr(config, name)
        if isinstance(value, dict) and dataclasses.is_dataclass(section) and not isinstance(section, type):
            value = dataclasses.replace(section, **value)
        setattr(config, name, value)
    return config


def resumed(config: MLLMConfig) -> MLLMConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, resume=True))


@contextmanager
def stopped(batch: int, number: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    """A signal comes in this batch of the run, counted from 0."""
    step, seen = Instruct.training_step, {"batches": 0}

    def stopping(self: Instruct, batch_: dict[str, torch.Tensor], index: int) -> torch.Tensor:
        if seen["batches"] == batch:
            signal.raise_signal(number)
        seen["batches"] += 1
        return step(self, batch_, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Instruct, "training_step", stopping)
        with pytest.raises(Interrupted) as left:
            yield
    assert left.value.code == 128 + number


@contextmanager
def watched(method: str, look: Callable[..., None]) -> Iterator[None]:
    """`look` is told of every call of a method of the task, before it."""
    original = getattr(Instruct, method)

    def watch(self: Instruct, *args: Any, **kwargs: Any) -> Any:
        look(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Instruct, method, watch)
        yield
