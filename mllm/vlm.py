"""A vision tower, a connector and a causal language model: the model that trains and answers.

Shapes: B sequences, L positions, I images of the whole batch, N vision tokens, M positions of an image, d width of the
language model, V words, P tokens of a prefix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mllm.connectors import InLayer, Instructed
from mllm.decoder import Decoder
from mllm.language import Language
from mllm.placement import placement, word_embeddings
from mllm.sequence import IGNORED
from mllm.shapes import Layout
from vpeft.tasks.learning import channels, normalise
from vpeft.tuned import Tuned, difference

COMPONENTS: tuple[str, ...] = ("vision", "connector", "language", "embeddings")
_OWNERS = {"vision": "vision", "connector": "connector", "language": "language", "prefix": "language"}

Batch = Mapping[str, Tensor]


def predicting(batch: Batch) -> Tensor:
    """Which of the first L-1 positions a trained word follows, [B, L-1] bool."""
    trained = batch["labels"][:, 1:] != IGNORED
    if "segments" in batch:  # the first word of a sample does not follow from the one before it in the row
        trained = trained & (batch["segments"][:, 1:] == batch["segments"][:, :-1])
    return trained


class VLM(nn.Module):
    """Answers about images: what the connector makes of the tower's tokens stands among the words of a sequence.

    A batch is a dict of tensors (`mllm.collate`): input_ids, attention_mask, position_ids, image_mask and time [B, L],
    image_row [I], `images` uint8 [I, 3, H, W] or `features` [I, N, dv] that the tower gave earlier, labels [B, L] for
    the loss, segments [B, L] where several samples share a row, text_ids and text_mask [I, T] for connectors that read.

    A batch without images runs the tower and the connector on a blank one and adds nothing of it, so that every process
    of a distributed run has the same gradients to wait for.

    Args:
        vision: A tower (`mllm.vision.tower`).
        connector: From its tokens to the language model (`mllm.connectors.build`).
        language: The language model, adapted already (`mllm.adapt`); its weights are used and not copied.
        checkpointing: Recompute the layers of the language model in the backward pass instead of keeping what they
            computed.

    Raises:
        ValueError: the language model cannot be recomputed, or has a prefix, which recomputing would drop.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vision: Tuned, connector: nn.Module, language: Language, checkpointing: bool = False) -> None:
        super().__init__()
        self.vision, self.connector = vision, connector
        self.language: Any = language.model
        self.prefix, self.about = language.prefix, language
        mean, std = vision.backbone.normalization
        self.register_buffer("mean", channels(tuple(mean)), persistent=False)
        self.register_buffer("std", channels(tuple(std)), persistent=False)
        self.mixed = any(p.dtype == torch.bfloat16 for p in self.language.parameters())
        self.plain_head = self._has_plain_head()
        if isinstance(connector, InLayer):
            connector.attach(Decoder(self.language))
        if checkpointing:
            self._recompute()

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B, L, V], float32."""
        return self._run(self.language, self.merge(batch), batch).logits.float()

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of the words that `labels` trains, each from the position before it; 0 if it trains none.

        Logits are computed at these positions only, where the model's head allows it.
        """
        labels, trained = batch["labels"][:, 1:], predicting(batch)
        embeds = self.merge(batch)
        if self.plain_head:
            hidden = self._run(self.language.get_decoder(), embeds, batch).last_hidden_state
            with self.autocast():
                logits = self.language.get_output_embeddings()(hidden[:, :-1][trained])
        else:
            logits = self._run(self.language, embeds, batch).logits[:, :-1][trained]
        total = F.cross_entropy(logits.float(), labels[trained], reduction="sum")
        return total / trained.sum().clamp(min=1)

    def see(self, images: Tensor) -> Tensor:
        """What the tower makes of images, uint8 [I, 3, H, W]: [I, N, dv]; `features` of a later batch."""
        return self.vision(normalise(images, self.mean, self.std))

    def merge(self, batch: Batch) -> Tensor:
        """The sequences [B, L, d]: words, and image tokens at the positions of `image_mask`.

        An in-layer connector has looked at the images afterwards.

        Raises:
            ValueError: `image_mask` has more or fewer positions than the images have tokens.
        """
        words = self.language.get_input_embeddings()(batch["input_ids"])
        blank = not len(batch["image_row"])
        features = self._features(batch)
        tokens = self._tokens(features, batch, blank)  # I M d
        mask, places = batch["image_mask"], int(batch["image_mask"].sum())
        if places != (0 if blank else tokens.shape[0] * tokens.shape[1]):
            raise ValueError(
                f"The batch has {places} image positions for {len(batch['image_row'])} images of {tokens.shape[1]} "
                "tokens; build it with the tokens of this connector (mllm.collate)."
            )
        if isinstance(self.connector, InLayer):
            self.connector.look(features[:0] if blank else features, Layout(mask, batch["time"], batch["image_row"]))
        if blank:
            unread = sum(p.sum() for p in self.connector.parameters() if p.requires_grad)  # those in the layers too
            return words + 0 * (tokens.sum() + unread)
        return words.masked_scatter(mask[..., None], tokens.to(words.dtype))

    def caching(self, rows: int) -> Any:
        """The cache that stands in front of so many sequences: the prefix, or None."""
        return None if self.prefix is None else self.prefix(rows)

    def layers(self) -> list[nn.Module]:
        """The layers of the language model, in order."""
        return [layer.module for layer in Decoder(self.language).layers]

    def components(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Trained parameters under `vision`, `connector`, `language` and `embeddings`, by name."""
        found: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in COMPONENTS}
        for name, parameter, component in self._parts():
            if parameter.requires_grad:
                found[component].append((name, parameter))
        return found

    def totals(self) -> dict[str, int]:
        """Parameters of the same components, frozen ones too."""
        found = dict.fromkeys(COMPONENTS, 0)
        for _, parameter, component in self._parts():
            found[component] += parameter.numel()
        return found

    def placement(self) -> dict[str, list[str]]:
        """Full names of the modules in which something learns, by component."""
        return {
            "vision": placement(self.vision),
            "connector": placement(self.connector),
            "language": [name for part in (self.language, self.prefix) if part is not None for name in placement(part)],
        }

    def delta(self) -> dict[str, Tensor]:
        """Everything that training changes, and the connector even where it is frozen."""
        found = {f"vision.{name}": tensor for name, tensor in self.vision.delta().items()}
        found |= {f"connector.{name}": tensor for name, tensor in self.connector.state_dict().items()}
        return found | {
            name: parameter.detach()
            for name, parameter, component in self._parts()
            if component in ("language", "embeddings") and parameter.requires_grad
        }

    def load_delta(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `delta` gave.

        Raises:
            ValueError: tensors are missing, unknown or of another shape.
        """
        if wrong := difference(self.delta(), state):
            raise ValueError(f"These tensors are not of this model: {wrong}.")
        self.load_state_dict(dict(state), strict=False)

    def _parts(self) -> list[tuple[str, nn.Parameter, str]]:
        words = {id(p) for p in word_embeddings(self.language)}
        return [
            (name, p, "embeddings" if id(p) in words else _OWNERS[name.partition(".")[0]])
            for name, p in self.named_parameters()
        ]

    def _features(self, batch: Batch) -> Tensor:
        """Of the images [I N dv]; of a blank one if there is none."""
        known = batch.get("features")
        if known is not None:
            return known if len(known) else known.new_zeros(1, *known.shape[1:])
        images = batch["images"]
        if not len(images):
            images = images.new_zeros(1, 3, *self.vision.backbone.image_size)
        return self.see(images)

    def _tokens(self, features: Tensor, batch: Batch, blank: bool) -> Tensor:
        if not isinstance(self.connector, Instructed):
            return self.connector(features)
        ids, mask = batch["text_ids"], batch["text_mask"]
        if blank:
            ids, mask = ids.new_zeros(1, 1), mask.new_ones(1, 1)
        return self.connector(features, ids, mask)

    def _run(self, model: Any, embeds: Tensor, batch: Batch) -> Any:
        """The language model, or its layers alone, over whole sequences."""
        mask, positions, front = batch["attention_mask"], batch["position_ids"], 0
        cache = self.caching(len(embeds))
        if cache is not None:
            front = cache.get_seq_length()
            positions = positions + front
            mask = torch.cat([mask.new_ones(len(mask), front), mask], dim=1)
        if "segments" in batch:
            mask = self._blocks(batch["segments"], front, embeds.dtype)
        with self.autocast():
            return model(
                inputs_embeds=embeds,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )

    def _blocks(self, segments: Tensor, front: int, dtype: torch.dtype) -> Tensor:
        """Which positions see which, [B 1 L P+L]: of their own sample, those up to them, and the prefix."""
        window = getattr(self.language.config, "sliding_window", None)
        if window and segments.shape[1] > window:
            raise ValueError(
                f"{self.about.name} attends to the last {window} positions, and the rows of this batch have "
                f"{segments.shape[1]}. Packed rows must not be longer; shorten them, or do not pack."
            )
        seen = (segments[:, :, None] == segments[:, None, :]).tril()
        seen = F.pad(seen, (front, 0), value=True)[:, None]
        if self.language.config._attn_implementation != "eager":
            return seen
        return torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Beside bfloat16 weights, what learns is float32; products of the two are bfloat16."""
        return torch.autocast(self.language.device.type, torch.bfloat16) if self.mixed else contextlib.nullcontext()

    @torch.no_grad()
    def _has_plain_head(self) -> bool:
        """Whether logits are what the head makes of the last state; some families scale or bound them afterwards."""
        if getattr(self.language, "is_loaded_in_4bit", False):
            return False  # it cannot be asked before it is on a GPU
        # Of some words, because the first is often padding, of which nothing shows.
        ids = torch.linspace(0, self.about.shape.vocab - 1, 8, device=self.language.device).long()[None]
        words = self.language.get_input_embeddings()(ids)
        with self.autocast():
            whole = self.language(inputs_embeds=words, use_cache=False).logits
            last = self.language.get_decoder()(inputs_embeds=words, use_cache=False).last_hidden_state
            return torch.equal(whole, self.language.get_output_embeddings()(last))

    def _recompute(self) -> None:
        if self.prefix is not None:
            raise ValueError(
                "checkpointing recomputes layers without the cache that a prefix stands in. Use another "
                "language_method, or do without checkpointing."
            )
        if not self.language.supports_gradient_checkpointing:
            raise ValueError(
                f"{type(self.language).__name__} cannot recompute its layers; do without language.checkpointing."
            )
        self.language.activation_checkpointing_enable({"use_reentrant": False})
