"""Parameter-efficient fine-tuning methods: one file each, one entry each.

A method is an `nn.Module` that is built from a backbone and its own options, owns every parameter
it adds, and wires itself in `attach`. A method that trains parameters of the backbone itself names
them in `adopts`; they stay where they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from vpeft import entries
from vpeft.abilities import (
    Cacheable,
    Mergeable,
    MergingInputs,
    Method,
    Packing,
    Penalised,
    Preparing,
    Selective,
    Stepping,
    Widening,
)
from vpeft.methods.adalora import AdaLoRA
from vpeft.methods.adapter_plus import AdapterPlus
from vpeft.methods.adaptformer import AdaptFormer
from vpeft.methods.bi_adapter import BiAdapter
from vpeft.methods.bitfit import BitFit
from vpeft.methods.compacter import Compacter
from vpeft.methods.convpass import Convpass
from vpeft.methods.dam_vp import DAMVP
from vpeft.methods.difffit import DiffFit
from vpeft.methods.dora import DoRA
from vpeft.methods.dtl import DTL
from vpeft.methods.evp import EVP
from vpeft.methods.fact_tk import FactTK
from vpeft.methods.fact_tt import FactTT
from vpeft.methods.fishmask import FishMask
from vpeft.methods.full import Full
from vpeft.methods.houlsby import Houlsby
from vpeft.methods.ia3 import IA3
from vpeft.methods.ilm_vp import ILMVP
from vpeft.methods.krona import KronA
from vpeft.methods.layernorm import LayerNormTuning
from vpeft.methods.linear import Linear
from vpeft.methods.lion import LION
from vpeft.methods.lora import LoRA
from vpeft.methods.lora_fa import LoRAFA
from vpeft.methods.lorand import LoRand
from vpeft.methods.lst import LST
from vpeft.methods.mona import Mona
from vpeft.methods.mtlora import MTLoRA
from vpeft.methods.noah import NOAH
from vpeft.methods.parallel import Parallel
from vpeft.methods.partial import Partial
from vpeft.methods.pfeiffer import Pfeiffer
from vpeft.methods.polyhistor import Polyhistor
from vpeft.methods.prefix import Prefix
from vpeft.methods.rein import Rein
from vpeft.methods.repadapter import RepAdapter
from vpeft.methods.ssf import SSF
from vpeft.methods.vp import VP
from vpeft.methods.vpt import VPT
from vpeft.methods.vqt import VQT

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

__all__ = [
    "CONFLICTS",
    "METHODS",
    "Cacheable",
    "Mergeable",
    "MergingInputs",
    "Method",
    "Packing",
    "Penalised",
    "Preparing",
    "Selective",
    "Stepping",
    "Widening",
    "build",
    "check",
    "check_cacheable",
    "feature_dim",
    "name_of",
    "options",
    "resolve",
]

METHODS: dict[str, type[nn.Module]] = {
    "adalora": AdaLoRA,
    "adapter_plus": AdapterPlus,
    "adaptformer": AdaptFormer,
    "bi_adapter": BiAdapter,
    "bitfit": BitFit,
    "compacter": Compacter,
    "convpass": Convpass,
    "dam_vp": DAMVP,
    "difffit": DiffFit,
    "dora": DoRA,
    "dtl": DTL,
    "evp": EVP,
    "fact_tk": FactTK,
    "fact_tt": FactTT,
    "fishmask": FishMask,
    "full": Full,
    "houlsby": Houlsby,
    "ia3": IA3,
    "ilm_vp": ILMVP,
    "krona": KronA,
    "layernorm": LayerNormTuning,
    "linear": Linear,
    "lion": LION,
    "lora": LoRA,
    "lora_fa": LoRAFA,
    "lorand": LoRand,
    "lst": LST,
    "mona": Mona,
    "mtlora": MTLoRA,
    "noah": NOAH,
    "parallel": Parallel,
    "partial": Partial,
    "pfeiffer": Pfeiffer,
    "polyhistor": Polyhistor,
    "prefix": Prefix,
    "rein": Rein,
    "repadapter": RepAdapter,
    "ssf": SSF,
    "vp": VP,
    "vpt": VPT,
    "vqt": VQT,
}


# (earlier, later) in a list of methods -> why the two do not go together in this order
CONFLICTS: dict[tuple[str, str], str] = {
    **{
        pair: "lst reads its features from its side network, where the change of the last norm or block is not seen"
        for other in ("ssf", "difffit", "layernorm", "bitfit", "full", "partial", "mtlora")
        for pair in (("lst", other), (other, "lst"))
    },
    **{
        ("lst", other): f"lst has read a block before {other} acts at its end; put lst last"
        for other in ("adapter_plus", "rein")
    },
    **{
        ("vqt", other): f"vqt widens the features and keeps the blocks' sequence, which {other} changes; put vqt last"
        for other in ("vpt", "noah", "lion")
    },
    **{
        ("dtl", other): f"dtl follows the sequence from block to block, which {other} lengthens; put dtl last"
        for other in ("vpt", "noah")
    },
    ("repadapter", "ssf"): "ssf would scale what repadapter made of norm(x), which does not merge; put ssf first",
}


def name_of(method: nn.Module) -> str:
    """What METHODS calls it."""
    return next((name for name, kind in METHODS.items() if type(method) is kind), type(method).__name__)


def feature_dim(backbone: Backbone, methods: Iterable[nn.Module]) -> int:
    """Width of what the head sees."""
    return backbone.dim + sum(method.added_features for method in methods if isinstance(method, Widening))


Spec = Mapping[str, Any] | Sequence[Mapping[str, Any]]
GIVEN = ("backbone",)


def build(spec: Spec, backbone: Backbone) -> list[nn.Module]:
    """Build the methods of a `method:` entry, `{name: vpt, prompts: 10}` or a list of such.

    Raises:
        ValueError: an unknown method or option, or one that this backbone has no place for.
    """
    check(spec)
    return [entries.build(METHODS, entry, backbone) for entry in _entries(spec)]


def check(spec: Spec) -> None:
    """Raise ValueError unless `spec` names known methods and options; needs no backbone.

    Values are checked for their type here and for their meaning by the method itself.
    """
    for entry in _entries(spec):
        entries.check("method", METHODS, entry, GIVEN)
    names = [str(entry["name"]) for entry in _entries(spec)]
    for pair in itertools.combinations(names, 2):
        if pair in CONFLICTS:
            raise ValueError(f"methods {pair[0]} and {pair[1]}, in this order, do not go together: {CONFLICTS[pair]}.")


def check_cacheable(spec: Spec) -> None:
    """Raise ValueError unless `spec` names one method, and that is Cacheable."""
    names = [entry["name"] for entry in _entries(spec)]
    changing = [name for name in names if not issubclass(METHODS[name], Cacheable)]
    if changing or len(names) > 1:
        known = ", ".join(name for name, method in METHODS.items() if issubclass(method, Cacheable))
        why = "what the backbone makes of an image changes while it trains" if changing else "it takes one method alone"
        raise ValueError(
            f"cache_features cannot be used with method {'+'.join(changing or names)}: {why}. It is for {known}."
        )


def options(name: str) -> dict[str, Any]:
    """The options of a method and their defaults."""
    return entries.options(METHODS, name, GIVEN)


def resolve(spec: Spec) -> dict[str, Any] | list[dict[str, Any]]:
    """`spec` with every option written out, so that a later change of a default changes nothing."""
    full = [entries.resolve(METHODS, entry, GIVEN) for entry in _entries(spec)]
    return full[0] if isinstance(spec, Mapping) else full


def _entries(spec: Spec) -> list[Mapping[str, Any]]:
    found = [spec] if isinstance(spec, Mapping) else list(spec)
    if not found or not all(isinstance(entry, Mapping) and "name" in entry for entry in found):
        raise ValueError(f"method is {spec!r}; it is written {{name: vpt, prompts: 10}}, or as a list of such.")
    return cast(list[Mapping[str, Any]], found)
