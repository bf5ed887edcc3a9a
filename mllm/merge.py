"""What was trained in a language model, written into plain weights of it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mllm.language import Language
from vpeft.backbones.weights import Weights, content_hash


@torch.no_grad()
def merged(language: Language) -> Language:
    """A language model of the same class without peft in it, which computes the same; the given one is not changed.

    LoRA, DoRA and (IA)^3 are added to the weights; what was trained in place is there already. What a connector has put
    into the layers is left behind: attach it again.

    Raises:
        ValueError: something of it is not a change of the weights that the class has.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import AutoModelForCausalLM

    model = language.model
    if language.prefix is not None:
        raise ValueError(
            f"The prefix of {language.name} cannot be merged: it is keys and values that no weights of the model make. "
            "Use the adapter beside the model."
        )
    if getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            f"{language.name} is held in 4 bits, into which LoRA cannot be merged without losing most of it. Use the "
            "adapter beside the model."
        )
    state: dict[str, Tensor] = {}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    for name, layer in layers.items():
        twin: Any = copy.deepcopy(layer)
        twin.merge(safe_merge=True)
        state |= {f"{name}.{key}": tensor for key, tensor in twin.get_base_layer().state_dict().items()}
    inside = tuple(f"{name}." for name in layers)
    state |= {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(inside or "\0")}
    plain: Any = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    added = sorted(set(state) - set(plain.state_dict()))
    if added:
        raise ValueError(
            f"{type(model).__name__} has no place for {added[0]} and {len(added) - 1} more, so they cannot be merged. "
            "Use the adapter beside the model."
        )
    plain.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    plain = plain.eval().requires_grad_(False)
    return replace(language, model=plain, weights=Weights("given", f"merged {language.name}", content_hash(plain)))
