"""What is compared: an entry of every method, and Hugging Face peft's methods on the same timm model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from vpeft.backbones import Backbone
from vpeft.bench.setting import Setting
from vpeft.checkpoint import save_adapter
from vpeft.heads import LinearHead
from vpeft.methods import build, feature_dim
from vpeft.packed.sharing import own_adopted
from vpeft.tuned import Tuned

CLASSES = 100
ALL_LINEARS = ("qkv", "proj", "fc1", "fc2")
_THEIR_QKV = r"blocks\.\d+\.attn\.qkv"
_THEIR_LINEARS = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
_THEIR_NORMS = r"(blocks\.\d+\.norm[12]|norm)"

# A method entry, or `peft`: which of peft's configurations, and its options. Dropout is off everywhere.
CASES: dict[str, Mapping[str, Any]] = {
    "full": {"name": "full"},
    "linear": {"name": "linear"},
    "bitfit": {"name": "bitfit"},
    "layernorm": {"name": "layernorm"},
    "partial-1": {"name": "partial"},
    "vpt-shallow-50": {"name": "vpt", "deep": False, "dropout": 0.0},
    "vpt-deep-10": {"name": "vpt", "prompts": 10, "dropout": 0.0},
    "vpt-deep-50": {"name": "vpt", "prompts": 50, "dropout": 0.0},
    "adaptformer-64": {"name": "adaptformer", "dropout": 0.0},
    "lora-qkv": {"name": "lora", "targets": ["qkv"], "shared_a": True},
    "lora-q-v": {"name": "lora"},
    "lora-all": {"name": "lora", "targets": list(ALL_LINEARS), "shared_a": True},
    "lora-fa": {"name": "lora_fa"},
    "dora": {"name": "dora"},
    "dora-qkv": {"name": "dora", "targets": ["qkv"]},
    "adalora": {"name": "adalora"},
    "krona": {"name": "krona"},
    "ia3": {"name": "ia3"},
    "ssf": {"name": "ssf"},
    "difffit": {"name": "difffit"},
    "fishmask": {"name": "fishmask"},
    "fact-tt-16": {"name": "fact_tt", "dropout": 0.0},
    "fact-tk-32": {"name": "fact_tk", "dropout": 0.0},
    "houlsby-8": {"name": "houlsby"},
    "pfeiffer-8": {"name": "pfeiffer", "dropout": 0.0},
    "parallel-8": {"name": "parallel", "bottleneck": 8, "dropout": 0.0},
    "adapter-plus-8": {"name": "adapter_plus"},
    "repadapter-8": {"name": "repadapter", "dropout": 0.0},
    "compacter-24": {"name": "compacter"},
    "convpass-8": {"name": "convpass", "dropout": 0.0},
    "convpass-attn-8": {"name": "convpass", "attention_only": True, "dropout": 0.0},
    "bi-adapter-32": {"name": "bi_adapter"},
    "lorand": {"name": "lorand"},
    "mona-64": {"name": "mona"},
    "mtlora-64": {"name": "mtlora", "dropout": 0.0},
    "polyhistor": {"name": "polyhistor"},
    "rein-100": {"name": "rein"},
    "noah": {"name": "noah", "dropout": 0.0},
    "lion": {"name": "lion"},
    "vp-30": {"name": "vp"},
    "evp-30": {"name": "evp"},
    "ilm-vp-128": {"name": "ilm_vp"},
    "dam-vp-10": {"name": "dam_vp", "prompts": 10},
    "vqt-1": {"name": "vqt", "dropout": 0.0},
    "dtl": {"name": "dtl"},
    "dtl-plus": {"name": "dtl", "kernel": 3},
    "lst": {"name": "lst"},
    "prefix-10": {"name": "prefix"},
    "peft-lora-qkv": {"peft": "LoraConfig", "r": 8, "lora_alpha": 8, "target_modules": _THEIR_QKV},
    "peft-lora-all": {"peft": "LoraConfig", "r": 8, "lora_alpha": 8, "target_modules": _THEIR_LINEARS},
    "peft-dora-qkv": {
        "peft": "LoraConfig",
        "r": 8,
        "lora_alpha": 16,
        "target_modules": _THEIR_QKV,
        "use_dora": True,
    },
    "peft-ia3": {
        "peft": "IA3Config",
        "target_modules": r"blocks\.\d+\.(attn\.qkv|mlp\.fc2)",
        "feedforward_modules": r"blocks\.\d+\.mlp\.fc2",
    },
    "peft-layernorm": {"peft": "LNTuningConfig", "target_modules": _THEIR_NORMS},
}

# Ours and theirs, of the same form.
PAIRS = {
    "lora-qkv": "peft-lora-qkv",
    "lora-all": "peft-lora-all",
    "dora-qkv": "peft-dora-qkv",
    "ia3": "peft-ia3",
    "layernorm": "peft-layernorm",
}


def check(names: Sequence[str]) -> None:
    """Raise ValueError unless all are names of cases, each with `@` and a precision behind it or not."""
    if unknown := [name for name in names if name.partition("@")[0] not in CASES]:
        raise ValueError(f"there are no cases {', '.join(unknown)}; there are {', '.join(CASES)}.")
    for name in names:
        resolved(name, Setting())


def resolved(name: str, setting: Setting) -> tuple[Mapping[str, Any], Setting]:
    """What is built, and on what: `lora-qkv@bf16` has a precision of its own.

    Raises:
        ValueError: There is no such precision.
    """
    case, _, precision = name.partition("@")
    return CASES[case], replace(setting, precision=precision) if precision else setting


def model_of(spec: Mapping[str, Any], body: Backbone) -> Tuned | nn.Sequential:
    """What trains: a method of ours with a linear head, or peft's model with one.

    Args:
        spec: A value of CASES.
        body: Changed. It may be a twin of others (`vpeft.packed.sharing.twin`): what is trained of it is copied.
    """
    if "peft" not in spec:
        methods = build(spec, body)
        tuned = Tuned(body, methods, LinearHead(feature_dim(body, methods), CLASSES))
        own_adopted(tuned)
        return tuned
    import peft

    options = {name: value for name, value in spec.items() if name != "peft"}
    adapted: Any = peft.get_peft_model(body.model, getattr(peft, spec["peft"])(**options))  # type: ignore[arg-type]
    return nn.Sequential(adapted, LinearHead(body.dim, CLASSES))


def head_of(model: nn.Module) -> LinearHead:
    """The head of what `model_of` gave."""
    return next(module for module in model.modules() if isinstance(module, LinearHead))


def stored(model: Tuned | nn.Sequential, spec: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of the file of the adapter as it is saved, and those of them that the head takes.

    peft's is its adapter_model.safetensors, which has no head.
    """
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(model, Tuned):
            file = Path(folder, "adapter.safetensors")
            save_adapter(file, model, _manifest(model, spec))
            head = sum(tensor.numel() * tensor.element_size() for tensor in model.head.state_dict().values())
            return file.stat().st_size, head
        adapted: Any = model[0]
        adapted.save_pretrained(folder)
        return Path(folder, "adapter_model.safetensors").stat().st_size, 0


def _manifest(model: Tuned, spec: Mapping[str, Any]) -> dict[str, Any]:
    body, (mean, std) = model.backbone, model.backbone.normalization
    return {
        "backbone": {"name": body.name, "pretrained": "none", "image_size": list(body.image_size), "seed": 0},
        "method": [dict(spec)],
        "head": {"init": "trunc_normal", "batch_norm": False},
        "drop_path": 0.0,
        "classes": [str(number) for number in range(CLASSES)],
        "normalization": {"name": "own", "mean": list(mean), "std": list(std)},
        "resize": "squash",
        "interpolation": "bicubic",
        "task": "noise",
    }


def merged(model: Tuned | nn.Sequential, plain: nn.Module) -> nn.Module:
    """The backbone with the case written into its weights.

    Args:
        model: Of `model_of`; unchanged.
        plain: A model of the vendor's that may be changed.

    Raises:
        ValueError: The method cannot be merged.
    """
    if isinstance(model, Tuned):
        plain.load_state_dict(model.merge(), strict=True, assign=True)
        return plain
    adapted: Any = copy.deepcopy(model[0])
    return adapted.merge_and_unload()
