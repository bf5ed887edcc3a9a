"""Adapters as folders of Hugging Face peft, and back: adapter_config.json and adapter_model.safetensors.

    base_model.model.blocks.0.attn.qkv.lora_A.weight          the vendor's own names, so that peft finds its modules
    base_model.model.head.weight                              a linear head of a timm model, in `modules_to_save`

LoRA, DoRA and (IA)^3. Of other models the head is beside them, in head.safetensors under the names of its class in
`vpeft.heads`. Files are written and read without peft.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vpeft import methods
from vpeft.backbones import Backbone
from vpeft.backbones.weights import load_file
from vpeft.checkpoint import load_adapter
from vpeft.fetch import file_sha256
from vpeft.interop import peft_ia3, peft_lora, timm_model
from vpeft.interop.folder import new_folder
from vpeft.interop.imported import Found
from vpeft.interop.peft_names import PREFIX, located, modules_of, names_of
from vpeft.merge import about
from vpeft.methods import name_of

_WRITERS: dict[str, Callable[..., tuple[dict[str, Any], dict[str, Tensor]]]] = {
    "lora": peft_lora.write,
    "dora": peft_lora.write,
    "ia3": peft_ia3.write,
}
_READERS = {"LORA": peft_lora.read, "IA3": peft_ia3.read}
_PARTS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "ia3_l")
# Entries of adapter_config.json that say nothing of what the adapter computes, or that are read.
_READ = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern"),
    *("alpha_pattern", "use_rslora", "use_dora", "modules_to_save", "init_lora_weights", "init_ia3_weights"),
    *("layers_to_transform", "layers_pattern", "feedforward_modules", "eva_config", "loftq_config", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying", "bias", "runtime_config"),
}
# What to do with a folder that is not read, or is not of this backbone, and with an adapter that is not written.
_MERGE = "Merge it with peft (merge_and_unload) and use the merged weights as a backbone."
_OTHER = "Give the backbone that it was trained on, or merge it with peft (merge_and_unload)."
_OWN = "Only adapters that classify are written; use this one as it is."
# Starts that leave the backbone's weights as they are.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


def export(adapter: Path | str, output: Path | str, weights: str | None = None) -> tuple[list[Path], str]:
    """Write an adapter as a folder that `peft.PeftModel.from_pretrained` loads onto the plain model.

    Args:
        adapter: Of one method, lora, dora or ia3.
        output: The folder, which is made.
        weights: File of the backbone's weights, where they are no longer where training found them.

    Returns:
        What was written, and how to load it.

    Raises:
        ValueError: The adapter cannot be loaded, its method is not in the format or acts where peft finds no module, or
            the folder is there already.
        OSError: The folder could not be written.
    """
    output = Path(output)
    tuned, manifest = load_adapter(adapter, weights)
    if (kind := manifest.get("kind", "classification")) != "classification":
        raise ValueError(f"{adapter} is of kind {kind}: its neck and heads have no place in peft's format. {_OWN}")
    named = [name_of(method) for method in tuned.methods]
    if len(named) != 1 or named[0] not in _WRITERS:
        raise ValueError(f"{adapter} has {'+'.join(named)}; peft's format is written for one of {', '.join(_WRITERS)}.")
    (method,), backbone = tuned.methods, tuned.backbone
    called = {id(module.affine.owner) for block in modules_of(backbone) for module in block.values()}
    changed = {
        id(affine.owner): affine for block in backbone.blocks for affine in block.affines.values() if affine.updates
    }
    if unseen := next((affine for key, affine in changed.items() if key not in called), None):
        raise ValueError(
            f"{adapter} changes {unseen.weight} of {backbone.name}, which reads it as a tensor, and peft "
            "replaces modules that are called. Merge the adapter (tools/merge.py), or train it on the same weights in "
            "timm."
        )
    config, tensors = _WRITERS[named[0]](method, backbone, names_of(backbone))
    classifier = timm_model.classifier(tuned, len(manifest["classes"]))
    head = tuned.head.state_dict()
    if classifier:
        tensors |= timm_model.under(classifier, tuned)
    config |= {
        "modules_to_save": [classifier] if classifier else None,
        "base_model_name_or_path": backbone.recipe.name
        if backbone.recipe and backbone.recipe.library == "hf"
        else None,
        "task_type": None,
        "inference_mode": True,
    }
    metadata = {"format": "pt", "vpeft_exported": json.dumps(about(manifest))}
    with new_folder(output) as folder:
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        _save(folder / "adapter_model.safetensors", {PREFIX + key: tensor for key, tensor in tensors.items()}, metadata)
        if not classifier:
            _save(folder / "head.safetensors", head, metadata)
    return [output], _how(tuned, output, classifier, len(manifest["classes"]))


def _how(tuned: Any, output: Path, classifier: str | None, classes: int) -> str:
    backbone = tuned.backbone
    load = f"load it with peft.PeftModel.from_pretrained(model, '{output}')"
    if classifier:
        return f"{load}, model = {timm_model.made(backbone, classes)}; its {classifier} comes with it"
    head = f"{output / 'head.safetensors'} is the head, a vpeft.heads.{type(tuned.head).__name__}"
    return f"{load}, model a {type(backbone.model).__name__} with the backbone's weights; {head}"


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    save_file({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}, path, metadata)


def read(folder: Path | str, backbone: Backbone) -> Found:
    """What a folder of peft holds, in the names of this project.

    Args:
        folder: With adapter_config.json and adapter_model.safetensors (or .bin, of plain tensors).
        backbone: It was trained on; the folder holds nothing of it.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: Another method or variant than can be read, by name; modules that this backbone does not have.
    """
    folder = Path(folder)
    config = _config(folder)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"{folder} holds {kind} of peft; what can be read is {', '.join(_READERS)} (DoRA too).")
    _refuse_variants(folder, config)
    file = next((path for name in ("safetensors", "bin") if (path := folder / f"adapter_model.{name}").is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} holds no adapter_model.safetensors; copy all that peft saved.")
    modules = modules_of(backbone)
    known = {module.name for block in modules for module in block.values()}
    changed: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in load_file(file).items():
        name = key.removeprefix(PREFIX)
        part = next((part for part in _PARTS if name.endswith(f".{part}")), None)
        if part is None:
            rest[name.replace(".modules_to_save.", ".")] = tensor
            continue
        module = name.removesuffix(f".{part}")
        place = located(module, known)
        if place is None:
            raise ValueError(
                f"{folder} changes {module}, which {backbone.name} has not; it has {', '.join(sorted(known)[:3])}, ... "
                "Give the backbone that the folder was trained on."
            )
        changed.setdefault(place, {})[part.removesuffix(".weight")] = tensor
    if not changed:
        raise ValueError(
            f"{folder} changes nothing: {file.name} holds no {' or '.join(_PARTS)}. Give a folder of LoRA, DoRA or "
            "(IA)^3."
        )
    try:
        spec, state = _READERS[kind](config, changed, modules)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}. {_OTHER}") from error
    spec = methods.resolve(spec)
    assert isinstance(spec, dict)
    notes = ["the folder holds nothing of the backbone, so nobody can tell whether it is the right one"]
    source = {"repository": "huggingface/peft", "file": f"{folder.name}/{file.name}", "sha256": file_sha256(file)}
    return Found(spec, state, _head(folder, rest), source, notes)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no adapter_config.json; give the folder that peft saved.")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a configuration of peft; give the folder that peft saved.")
    return found


def _refuse_variants(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse, by its name, whatever changes what an adapter computes and is not read."""
    if odd := [key for key, value in config.items() if key not in _READ and value]:
        raise ValueError(
            f"{folder} sets {odd[0]}: {config[odd[0]]!r}, which is a variant that cannot be read. {_MERGE}"
        )
    if config.get("bias", "none") != "none":
        raise ValueError(
            f"{folder} sets bias: {config['bias']!r}, so that biases were trained too, which are not read. {_MERGE}"
        )
    if (start := config.get("init_lora_weights")) not in _STARTS:
        raise ValueError(
            f"{folder} sets init_lora_weights: {start!r}, which changes the backbone's own weights. Save it from peft "
            "with path_initial_model_for_weight_conversion, which makes it plain LoRA."
        )


def _head(folder: Path, rest: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a LinearHead from what is in the file beside the method."""
    weights = [name for name in rest if name.endswith(".weight") and rest[name].ndim == 2]
    if not rest:
        return {}
    stem = weights[0].removesuffix(".weight") if weights else ""
    if odd := sorted(set(rest) - {f"{stem}.weight", f"{stem}.bias"}):
        raise ValueError(
            f"{folder} holds {odd[0]} in modules_to_save, which is neither the method nor one linear head. {_MERGE}"
        )
    weight = rest[f"{stem}.weight"].float()
    bias = rest.get(f"{stem}.bias", torch.zeros(len(weight))).float()
    return {"linear.weight": weight, "linear.bias": bias}
