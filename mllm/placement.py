"""Where in a language model something is trained: its maps by role or by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from vpeft.nearest import did_you_mean

# What families of language models call the maps of a layer; the last part of a module's name.
ROLES: dict[str, tuple[str, ...]] = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj", "out_proj"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1"),
    "down": ("down_proj", "fc2"),
}
_LAYER = re.compile(r"\.(?:layers|h)\.\d+\.")


def placement(model: nn.Module) -> list[str]:
    """Full names of the modules in which something learns, in the model's order, without the parts that peft adds."""
    learning = (name for name, parameter in model.named_parameters() if parameter.requires_grad)
    return list(dict.fromkeys(_owner(name) for name in learning))


def _owner(name: str) -> str:
    of_peft = re.search(r"\.(?:lora|ia3)_", name)
    return name[: of_peft.start()] if of_peft else name.rpartition(".")[0] or name


def matched(method: str, model: nn.Module, targets: Sequence[str] | str | None) -> list[str]:
    """Full names of the maps of the layers that targets name.

    Args:
        method: For the message.
        model: Causal language model.
        targets: Roles, or a regular expression for whole names, or None for all.

    Raises:
        ValueError: something in them names no map.
    """
    names = [name for name, _ in maps(model)]
    if targets is None:
        found = names
    elif isinstance(targets, str):
        try:
            found = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise ValueError(f"{method}: targets '{targets}' is no regular expression: {error}.") from error
        if not found:
            raise ValueError(
                f"{method}: targets '{targets}' matches no map of {type(model).__name__}. A whole name is matched, as "
                f"{', '.join(names[:2])}."
            )
    else:
        for role in targets:
            if role not in ROLES:
                raise ValueError(
                    f"{method}: targets names '{role}', which is no role (a regular expression is given as one word, "
                    f"not in a list); {did_you_mean(role, ROLES)}"
                )
            if not present(model, role):
                has = ", ".join(one for one in ROLES if present(model, one)) or "none of the roles"
                raise ValueError(
                    f"{method}: targets names '{role}', and {type(model).__name__} has no such map; it has {has}."
                )
        leaves = {leaf for role in targets for leaf in ROLES[role]}
        found = [name for name in names if name.rpartition(".")[2] in leaves]
    if not found:
        raise ValueError(f"{method}: there is no map to act on in {type(model).__name__}; give targets.")
    return found


def word_embeddings(model: Any) -> Iterator[nn.Parameter]:
    """Parameters of the words, in and out; one where they are tied."""
    both = model.get_input_embeddings(), model.get_output_embeddings()
    yield from {id(p): p for module in both if module is not None for p in module.parameters()}.values()


def maps(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """The affine maps of a model's layers, by their full names."""
    found = ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear))
    return [(name, module) for name, module in found if _LAYER.search(f".{name}")]


def present(model: nn.Module, role: str) -> bool:
    """Whether a model has maps of this role."""
    return any(name.rpartition(".")[2] in ROLES.get(role, ()) for name, _ in maps(model))
