"""Writes the adapters of a generation, adapters/GENERATION/NAME.safetensors, and what the models say with them.

    python -m tests.golden.make_adapters            # those of CASES that there are not
    python -m tests.golden.make_adapters lora vpt   # these, which there may not be

A generation is how the project saves adapters at a time. It is made once and kept: files of users do not change with
the code, so none here is ever written again. Where the form of what is saved changes, GENERATION is counted up and the
cases that it concerns are made anew beside the old ones; where a method is added, it gets a case in this generation.

Each adapter is that of a run of a few steps, manifest and all, in which every learned number is then moved by a
formula, so that none is at its start.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

import mllm.adapter
from tests.data.masked_layouts import write_folder
from tests.golden import adapters
from tests.golden.adapters import CLIP, FILES, HF, LANGUAGE, SIDE, SWIN, VIT
from tests.runs import write_images
from vpeft import checkpoint, run
from vpeft.config import parse

GENERATION = "1"

LORA: dict[str, Any] = {"name": "lora", "rank": 2}
MLLM: dict[str, Any] = {"kind": "mllm", "connector": {"name": "mlp"}, "language_method": {"name": "frozen"}}
QFORMER = {"name": "qformer", "tokens": 2, "dim": 8, "depth": 1, "heads": 2, "hidden": 16}
REIN = {"name": "rein", "tokens": 3, "rank": 2, "scale": 1.0}

# What differs from `settings`. Each method once at least, and each form of storing. None of kind multitask: its heads
# have hundreds of channels, which would be megabytes.
CASES: dict[str, dict[str, Any]] = {
    "adalora": {"method": {"name": "adalora", "rank": 3, "target_rank": 2}},
    "adapter_plus": {"method": {"name": "adapter_plus", "bottleneck": 2}},
    "adaptformer": {"method": {"name": "adaptformer", "bottleneck": 2}, "head": {"batch_norm": True}},
    "bi_adapter": {"method": {"name": "bi_adapter", "bottleneck": 4}},
    "bi_adapter_3_bits": {"method": {"name": "bi_adapter", "bottleneck": 4, "bits": 3}},
    "bitfit": {"method": {"name": "bitfit"}},
    "compacter": {"method": {"name": "compacter", "bottleneck": 4}},
    "convpass": {"method": {"name": "convpass", "bottleneck": 2}},
    "dam_vp": {
        "method": {"name": "dam_vp", "prompts": 2, "size": 1, "threshold": 0.1},
        "head": {"kind": "active_features"},
    },
    "difffit": {"method": {"name": "difffit"}},
    "dora": {"method": {"name": "dora", "rank": 2}},
    "dtl": {"method": {"name": "dtl", "first": 0, "kernel": 3}},
    "evp": {"method": {"name": "evp", "size": 4}},
    "fact_tk": {"method": {"name": "fact_tk", "rank": 2}},
    "fact_tt": {"method": {"name": "fact_tt", "rank": 2}},
    "fishmask": {"method": {"name": "fishmask", "share": 0.02}},
    "full": {"method": {"name": "full"}, "backbone": SWIN},
    "houlsby": {"method": {"name": "houlsby", "bottleneck": 2}},
    "ia3": {"method": {"name": "ia3"}},
    "ilm_vp": {"method": {"name": "ilm_vp", "inner": 24}, "head": {"kind": "label_mapping"}},
    "krona": {"method": {"name": "krona"}},
    "layernorm": {"method": {"name": "layernorm"}},
    "linear": {"method": {"name": "linear"}},
    "lion": {"method": {"name": "lion", "rank": 2}},
    "lora": {"method": LORA | {"targets": ["q", "v", "proj", "fc1"], "alpha": 3.0}},
    "lora_fa": {"method": {"name": "lora_fa", "rank": 2}},
    "lora_shared": {"method": LORA | {"targets": ["qkv"], "shared_a": True}},
    "lora_vpt": {"method": [LORA, {"name": "vpt", "prompts": 2}]},
    "lorand": {"method": {"name": "lorand", "kernel": 2, "branches": 2}},
    "lst": {"method": {"name": "lst", "reduction": 4}},
    "mona": {"method": {"name": "mona", "bottleneck": 2}},
    "mtlora": {"method": {"name": "mtlora", "rank": 1}},
    "noah": {"method": {"name": "noah", "prompts": [2, 0], "lora": 1, "adapter": [0, 2]}},
    "parallel": {"method": {"name": "parallel", "bottleneck": 2, "attention": True}},
    "partial": {"method": {"name": "partial"}},
    "pfeiffer": {"method": {"name": "pfeiffer", "bottleneck": 2}},
    "polyhistor": {"method": {"name": "polyhistor", "ratio": 4, "rank": 2, "embedding": 4}},
    "prefix": {"method": {"name": "prefix", "prefixes": 2}},
    "rein": {"method": REIN},
    "repadapter": {"method": {"name": "repadapter", "bottleneck": 2}},
    "ssf": {"method": {"name": "ssf"}},
    "vp": {"method": {"name": "vp", "size": 2}},
    "vpt": {"method": {"name": "vpt", "prompts": 2}},
    "vpt_shallow_project": {"method": {"name": "vpt", "prompts": 2, "deep": False, "project": 4}},
    "vqt": {"method": {"name": "vqt", "queries": 2, "weighted": True}},
    # Names of parameters that are the libraries' own, with torch's parametrizations between in open_clip's attention.
    "bitfit_lora_open_clip": {"method": [{"name": "bitfit"}, LORA], "backbone": CLIP},
    "layernorm_transformers": {"method": {"name": "layernorm"}, "backbone": HF},
    "lora_transformers": {"method": LORA, "backbone": HF},
    "bitfit_swin": {"method": {"name": "bitfit"}, "backbone": SWIN},
    "ssf_swin": {"method": {"name": "ssf"}, "backbone": SWIN},
    "vpt_swin": {"method": {"name": "vpt", "prompts": 2}, "backbone": SWIN},
    "segmentation_linear": {
        "kind": "segmentation",
        "method": LORA,
        "auxiliary": {"name": "fcn", "width": 4, "index": 0},
    },
    "segmentation_vit_adapter": {
        "kind": "segmentation",
        "method": {"name": "linear"},
        "neck": {
            "name": "vit_adapter",
            "regime": "extractor",
            "inplanes": 2,
            "heads": 2,
            "vit_features": False,
            "interactions": 1,
        },
    },
    "segmentation_uper_swin": {
        "kind": "segmentation",
        "backbone": SWIN,
        "neck": {"name": "stages"},
        "head": {"name": "uper", "width": 4},
    },
    "mllm_mlp_lora": MLLM | {"method": LORA, "language_method": {"name": "lora", "r": 2, "alpha": 3.0}},
    "mllm_mlp_bitfit": MLLM
    | {"method": {"name": "bi_adapter", "bottleneck": 4}, "language_method": {"name": "bitfit", "create": True}},
    "mllm_qformer_prefix": MLLM | {"connector": QFORMER, "language_method": {"name": "prefix", "tokens": 2}},
}

# Tensors that no output follows from: statistics and heads that only training uses.
IDLE = ("sensitivity", "uncertainty", "num_batches_tracked", "k.bias", "head.auxiliary.")


def settings(case: dict[str, Any]) -> dict[str, Any]:
    """The configuration of a case: some steps, each of its places named without a folder."""
    kind, backbone = case.get("kind", "classification"), case.get("backbone", VIT)
    seen = {"backbone": backbone, "pretrained": FILES[backbone], "image_size": SIDE}
    given: dict[str, Any] = {"output": "runs", "seed": 1, "train": {"epochs": 2, "accelerator": "cpu"}}
    given["optim"] = {"lr": 0.01, "warmup_epochs": 0}
    if kind == "mllm":
        given |= {"vision": seen, "language": {"name": LANGUAGE}, "optim": {"lr": 0.01}}
        given["data"] = {"task": "rendered", "template": "bare", "count": 8, "max_length": 40, "batch_size": 4}
        given["data"] |= {"aspect": "squash", "eval_batch_size": 150}
        given["train"] = {"steps": 2, "accelerator": "cpu"}
    else:
        given |= seen
    if kind == "classification":
        given["data"] = {"task": "colors", "root": "colors", "format": "folder", "batch_size": 8}
    if kind == "segmentation":
        given |= {"neck": {"name": "last"}, "head": {"name": "linear_bn"}}
        given["data"] = {"task": "own", "root": "own", "split": "train", "batch_size": 4, "short_side": SIDE}
    return given | {key: value for key, value in case.items() if key != "backbone"} | {"kind": kind}


def trained(name: str, case: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model of a run with every learned number moved, and the manifest that the run wrote."""
    Path(f"{name}.yaml").write_text(yaml.safe_dump(settings(case) | {"name": name}))
    run.train(parse([f"{name}.yaml"]))
    model, manifest = adapters.load(Path("runs", name, "adapter.safetensors"))
    with torch.no_grad():
        for index, (_, parameter) in enumerate(learned(model)):
            parameter.add_(0.25 * adapters.numbers(parameter.shape, index))
    return model, manifest


def learned(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def save(path: Path, model: Any, manifest: dict[str, Any]) -> None:
    saved = mllm.adapter.save_adapter if manifest["kind"] == "mllm" else checkpoint.save_adapter
    saved(path, model, manifest)


def check(path: Path, expected: dict[str, Tensor]) -> None:
    """Raise unless every tensor of an adapter shows in the outputs: a wrong one that does not would pass the test."""
    model, manifest = adapters.load(path)
    for name, own in model.delta().items():
        before = own.clone()
        shown = False
        for other in changed(before):
            own.copy_(other)
            found = adapters.outputs(model, manifest)
            shown |= any(not torch.allclose(found[key], expected[key], rtol=0, atol=3e-5) for key in expected)
        own.copy_(before)
        if not shown and not any(part in name for part in IDLE):
            raise ValueError(f"{path.name}: what is in {name} {list(own.shape)} does not show in the outputs.")


def changed(tensor: Tensor) -> list[Tensor]:
    if tensor.dtype == torch.bool:
        return [~tensor]
    if not tensor.is_floating_point():
        return [tensor.clamp(min=1) - 1]
    return [tensor + adapters.numbers(tensor.shape, 7), tensor.flip(0) if tensor.ndim else -tensor]


def main(names: list[str]) -> None:
    folder = adapters.HERE / GENERATION
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in names or CASES}
    if there := [name for name in names if paths[name].exists()]:
        raise SystemExit(f"{', '.join(there)} of generation {GENERATION} is there already, and is kept as it is.")
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary), adapters.prepared(Path(temporary)):
        write_images(Path("colors"), 10)
        write_folder(Path("own"), {"train": 8, "val": 2, "test": 2}, ((SIDE, 48),))
        for name, path in paths.items():
            if path.exists():
                continue
            model, manifest = trained(name, CASES[name])
            new, said = Path(path.name), adapters.outputs(model, manifest)
            save(new, model, manifest)
            save_file(said, adapters.said(new))
            check(new, said)
            path.write_bytes(new.read_bytes())
            adapters.said(path).write_bytes(adapters.said(new).read_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
