"""Files as the official repositories save them, with the numbers of the golden files.

The names are written here from what those repositories do, not taken from the key maps.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from tests.golden import golden
from tests.interop.models import under

State = dict[str, Tensor]


def head(state: State, weight: str, bias: str) -> State:
    """The classifier of the golden backbone under other names."""
    return {weight: state["head.weight"], bias: state["head.bias"]}


def vpt_backbone() -> State:
    """The golden backbone as the ViT of KMnP/vpt names it."""
    base, found = golden("cls_base"), {}
    outer = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
        "norm.weight": "encoder.encoder_norm.weight",
        "norm.bias": "encoder.encoder_norm.bias",
    }
    inner = {"norm1": "attention_norm", "norm2": "ffn_norm", "attn.proj": "attn.out", "mlp.fc1": "ffn.fc1"}
    inner["mlp.fc2"] = "ffn.fc2"
    for ours, theirs in outer.items():
        found[f"enc.transformer.{theirs}"] = base[ours]
    for i in range(3):
        for part in ("weight", "bias"):
            for ours, theirs in inner.items():
                found[f"enc.transformer.encoder.layer.{i}.{theirs}.{part}"] = base[f"blocks.{i}.{ours}.{part}"]
            thirds = base[f"blocks.{i}.attn.qkv.{part}"].chunk(3)
            for role, third in zip(("query", "key", "value"), thirds, strict=True):
                found[f"enc.transformer.encoder.layer.{i}.attn.{role}.{part}"] = third.clone()
    return found


def vpt(name: str) -> dict[str, Any]:
    g = under(golden(name), "method/")
    theirs = {"prompt": "prompt_embeddings", "deep_prompt": "deep_prompt_embeddings"}
    theirs |= {f"prompt_proj.{part}": f"prompt_proj.{part}" for part in ("weight", "bias")}
    state = {f"enc.transformer.{theirs[key]}": value for key, value in g.items()}
    classifier = head(golden("cls_base"), "head.last_layer.weight", "head.last_layer.bias")
    return {"model": vpt_backbone() | state | classifier}


def vpt_prompts(name: str) -> dict[str, Any]:
    g = under(golden(name), "method/")
    theirs = {"prompt": "shallow_prompt", "deep_prompt": "deep_prompt"}
    return {theirs[key]: value.numpy() for key, value in g.items()}


def swin_backbone(base: str) -> State:
    """A golden Swin with patch merging at the end of a stage, as in the code that VPT and SSF began with."""
    state = golden(base)
    moved = {f"layers.{i + 1}.downsample.": f"layers.{i}.downsample." for i in range(3)}
    found = {}
    for key, value in state.items():
        start = next((ours for ours in moved if key.startswith(ours)), "")
        found[moved.get(start, "") + key.removeprefix(start)] = value
    found["head.weight"], found["head.bias"] = found.pop("head.fc.weight"), found.pop("head.fc.bias")
    return found


def vpt_swin(name: str) -> dict[str, Any]:
    g = under(golden(name), "method/")
    base = swin_backbone("swin_vpt_base")
    classifier = {f"head.last_layer.{part}": base.pop(f"head.{part}") for part in ("weight", "bias")}
    names = {"prompt": "prompt_embeddings"} | {f"deep_prompt_{i}": f"deep_prompt_embeddings_{i}" for i in range(4)}
    return {"model": {f"enc.{key}": v for key, v in (base | {names[k]: v for k, v in g.items()}).items()} | classifier}


def adaptformer(name: str, batch_norm: bool = False) -> dict[str, Any]:
    g, base = under(golden(name), "method/"), golden("cls_base")
    state: State = {}
    for key, value in base.items():
        if ".attn.qkv." in key:
            for role, third in zip("qkv", value.chunk(3), strict=True):
                state[key.replace("qkv", f"{role}_proj")] = third.clone()
        elif not key.startswith("head."):
            state[key.replace("mlp.", "")] = value
    for key, value in g.items():
        state[key.replace("adapter.down", "adaptmlp.down_proj").replace("adapter.up", "adaptmlp.up_proj")] = value
    if batch_norm:
        state |= head(base, "head.1.weight", "head.1.bias")
        state |= {"head.0.running_mean": torch.linspace(-1, 1, 32), "head.0.running_var": torch.linspace(0.5, 2, 32)}
        state["head.0.num_batches_tracked"] = torch.tensor(7)
    else:
        state |= head(base, "head.weight", "head.bias")
    return {"model": state, "optimizer": {"state": {}}, "epoch": 99, "scaler": {}, "args": argparse.Namespace(lr=0.1)}


_SSF = {"norm1": "ssf_{}_1", "norm2": "ssf_{}_2", "qkv": "attn.ssf_{}_1", "proj": "attn.ssf_{}_2"}
_SSF |= {"fc1": "mlp.ssf_{}_1", "fc2": "mlp.ssf_{}_2"}


def ssf(name: str) -> dict[str, Any]:
    state = dict(golden("cls_base"))
    for key, value in under(golden(name), "method/").items():
        place, _, which = key.rpartition(".")
        if place == "norm":
            state[f"ssf_{which}_1"] = value
        elif place == "patch_embed":
            state[f"patch_embed.ssf_{which}_1"] = value
        else:
            block, _, role = place.rpartition(".")
            state[f"{block}.{_SSF[role].format(which)}"] = value
    return {"epoch": 99, "arch": "vit", "state_dict": state, "version": 2, "args": argparse.Namespace(lr=0.1)}


def ssf_swin(name: str) -> dict[str, Any]:
    return {"state_dict": swin_backbone("swin_base") | under(golden(name), "method/"), "epoch": 99}


def fact_tt(name: str) -> State:
    g = under(golden(name), "method/")
    found = {"FacTu.weight": g["U.weight"], "FacTv.weight": g["V.weight"]}
    for i in range(3):
        for role in ("q", "k", "v", "proj"):
            found[f"blocks.{i}.attn.{role}_FacTs.weight"] = g[f"blocks.{i}.sigma_{role}.weight"]
        for role in ("fc1", "fc2"):
            found[f"blocks.{i}.mlp.{role}_FacTs.weight"] = g[f"blocks.{i}.sigma_{role}.weight"]
    return found | head(golden("cls_base"), "head.weight", "head.bias")


def fact_tk(name: str) -> State:
    g = under(golden(name), "method/")
    found = {"FacTu.weight": g["U.weight"], "FacTv.weight": g["V.weight"], "FacTp": g["P"], "FacTc": g["C"]}
    return found | head(golden("cls_base"), "head.weight", "head.bias")
