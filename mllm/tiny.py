"""A tiny vision tower and a tiny language model, trained here on drawn shapes, so that a connector can be tried in
seconds on any machine: nothing is downloaded.

The tower learns, from images of every pair of colour and shape, what is in each quadrant and which one that is. The
language model learns to answer questions about scenes of one shape that it is told of in words, and never sees an
image. Both are then frozen: whatever a connector gets right about an image, it has carried over (`mllm.gate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.collate import collate
from mllm.data import rendered
from mllm.data.images import Look
from mllm.sample import Sample, Turn
from mllm.sequence import IGNORED, encode
from mllm.templates import find

TEMPLATE = "bare"
PATCH, WIDTH, DEPTH, HEADS = 8, 64, 3, 4
IMAGES, IMAGE_EPOCHS = 4000, 8
TEXTS, TEXT_STEPS = 8000, 400
_BATCH = 64


def make(folder: Path, seed: int = 0, say: Callable[[str], None] = print) -> None:
    """Train both and save them as folders of transformers, `folder/vision` and `folder/language`.

    Args:
        folder: Is made; what is in it already is replaced.
        seed: Of initialisation and order.
        say: Is told how good they are.
    """
    torch.manual_seed(seed)
    tower, right = train_tower(seed)
    say(f"tower: {right['colour']:.1%} of colours and {right['shape']:.1%} of shapes in the quadrants of new images")
    tower.save_pretrained(folder / "vision")
    torch.manual_seed(seed)
    language, answered = train_language(seed)
    say(f"language model: {answered:.1%} of new questions about scenes in words")
    language.save_pretrained(folder / "language")
    rendered.tokenizer().save_pretrained(folder / "language")


def train_tower(seed: int) -> tuple[Any, dict[str, float]]:
    """A ViT of CLIP's kind that knows the colour and the shape in every quadrant, and how often it is right."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=rendered.SIZE,
        patch_size=PATCH,
    )
    tower = CLIPVisionModel(config)
    heads: Any = nn.ModuleDict({name: nn.Linear(WIDTH, 1 + 4) for name in ("colour", "shape", "place")})
    learned, new = (_scenes(count, start) for count, start in ((IMAGES, 0), (IMAGES // 10, IMAGES)))
    parameters = [*tower.parameters(), *heads.parameters()]
    steps = IMAGE_EPOCHS * math.ceil(IMAGES / _BATCH)
    order = np.random.default_rng(seed)
    optimiser, schedule = _optimiser(parameters, 2e-3, steps)
    for _ in range(IMAGE_EPOCHS):
        for chosen in torch.from_numpy(order.permutation(IMAGES)).split(_BATCH):
            seen = _quadrants(tower, learned["image"][chosen])
            loss = sum(
                F.cross_entropy(heads[name](seen).flatten(0, 1), learned[name][chosen].flatten()) for name in heads
            )
            _step(loss, optimiser, schedule)
    with torch.no_grad():
        seen = _quadrants(tower.eval(), new["image"])
        found = {name: (heads[name](seen).argmax(-1) == new[name])[new[name] > 0].float().mean() for name in heads}
    return tower, {name: float(share) for name, share in found.items()}


def train_language(seed: int) -> tuple[Any, float]:
    """A LLaMA that answers questions about scenes in words, and how often it is right."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = rendered.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=176,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=rendered.VOCABULARY.index("<s>"),
        eos_token_id=rendered.VOCABULARY.index("</s>"),
        pad_token_id=rendered.VOCABULARY.index("<pad>"),
    )
    model = LlamaForCausalLM(config)
    template = find(TEMPLATE)
    told = [encode(sample, template, tokenizer, 0, 256) for sample in _told(TEXTS)]
    learned, new = told[: -len(told) // 10], told[-len(told) // 10 :]
    order = np.random.default_rng(seed)
    optimiser, schedule = _optimiser(list(model.parameters()), 3e-3, TEXT_STEPS)
    for _ in range(TEXT_STEPS):
        batch = _rows([learned[i] for i in order.integers(len(learned), size=_BATCH)])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORED)
        _step(loss, optimiser, schedule)
    with torch.no_grad():
        batch = _rows(new)
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        right = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(1)
    return model, float(right.float().mean())


def _scenes(count: int, start: int) -> dict[str, Tensor]:
    """Images as CLIP's tower takes them, with the colour and the shape of each quadrant, 0 where there is none."""
    look = Look((rendered.SIZE, rendered.SIZE), "squash")
    images = torch.empty(count, 3, rendered.SIZE, rendered.SIZE, dtype=torch.uint8)
    colour, shape = torch.zeros(count, 4, dtype=torch.long), torch.zeros(count, 4, dtype=torch.long)
    for i in range(count):
        things = rendered.scene("all", start + i, pairs=bool(i % 2))
        images[i] = look(rendered.draw(things, np.random.default_rng([start + i, 3])))
        for thing in things:
            colour[i, thing.place] = 1 + list(rendered.COLOURS).index(thing.colour)
            shape[i, thing.place] = 1 + rendered.SHAPES.index(thing.shape)
    place = torch.arange(1, 5).expand(count, 4)
    return {"image": (images.float() / 255 - _MEAN) / _STD, "colour": colour, "shape": shape, "place": place}


# CLIP's own, which vpeft gives a tower of its kind.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def _quadrants(tower: Any, images: Tensor) -> Tensor:
    """Mean token of each quadrant, [n 4 width], of the layer that a connector reads."""
    side = rendered.SIZE // PATCH
    tokens = tower(images, output_hidden_states=True).hidden_states[-1][:, 1:]
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))
    return F.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2)


def _told(count: int) -> list[Sample]:
    """Questions about scenes of one shape, told in words."""
    found: list[Sample] = []
    number = 0
    while len(found) < count:
        things = rendered.scene("all", number, pairs=False, seed=1)
        for kind, question, answer in rendered.questions(things):
            asked = Turn("user", f"{rendered.described(things)} {question}")
            found.append(Sample(f"{number}/{kind}", (), (asked, Turn("assistant", answer))))
        number += 1
    return found[:count]


def _rows(chosen: list[Any]) -> dict[str, Tensor]:
    return collate([[one] for one in chosen], torch.empty(0, dtype=torch.long), 0, "right")


def _optimiser(parameters: list[nn.Parameter], lr: float, steps: int) -> tuple[Any, Any]:
    built = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    return built, torch.optim.lr_scheduler.OneCycleLR(built, lr, total_steps=steps, pct_start=0.1)


def _step(loss: Any, optimiser: Any, schedule: Any) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    schedule.step()
