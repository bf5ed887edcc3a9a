"""Names of modules in folders of Hugging Face peft, and the maps of a backbone that they name."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpeft.backbones import Backbone
from vpeft.seams import Affine

PREFIX = "base_model.model."
# What models with a head, and wrappers, put before the names of the towers here.
_AROUND = ("", "vit.", "dinov2.", "dinov2_with_registers.", "vision_model.", "timm_model.", "visual.trunk.", "visual.")
# Names of transformers before its release 5.
_FORMER = (
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


@dataclass(frozen=True)
class Module:
    """One map of a backbone, as peft sees it."""

    name: str
    affine: Affine

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        out, into = self.affine.shape
        return out, into


def names_of(backbone: Backbone) -> dict[int, str]:
    """The vendor's names of its modules, by their id."""
    return {id(module): name for name, module in backbone.model.named_modules()}


def modules_of(backbone: Backbone) -> list[dict[str, Module]]:
    """The linear maps of every block that are modules of their own, by role."""
    names = names_of(backbone)
    return [
        {
            role: Module(names[id(affine.owner)], affine)
            for role, affine in block.affines.items()
            if affine.called and len(affine.shape) == 2
        }
        for block in backbone.blocks
    ]


def located(name: str, known: set[str]) -> str | None:
    """A module of a folder under the name it has here; None if there is none."""
    for plain in (name.removeprefix(start) for start in _AROUND):
        renamed = plain
        for former, present in _FORMER:
            renamed = renamed.replace(former, present)
        for form in (plain, renamed, re.sub(r"^encoder\.layer\.", "layers.", renamed)):
            if form in known:
                return form
    return None


def pattern(patterns: Any, name: str, default: Any) -> Any:
    """What peft's rank_pattern or alpha_pattern says of a module: the first expression that matches the end of it.

    Raises:
        ValueError: It is no mapping of regular expressions, or one of them could take for ever.
    """
    if not isinstance(patterns, Mapping):
        raise ValueError(f"adapter_config.json has the pattern {str(patterns)[:80]}; a mapping of names is expected")
    return next((value for key, value in patterns.items() if _expression(key).match(name)), default)


@functools.cache
def _expression(key: str) -> re.Pattern[str]:
    # What backtracks over a repeated group, or over many repetitions, can take longer than anybody waits.
    if re.search(r"\)[*+?{]", key) or len(re.findall(r"[*+?{]", key)) > 4:
        raise ValueError(f"adapter_config.json has the pattern '{key[:80]}', which repeats too much to be read")
    try:
        return re.compile(rf"(.*\.)?({key})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"adapter_config.json has the pattern '{key[:80]}', no regular expression ({error})"
        ) from error
