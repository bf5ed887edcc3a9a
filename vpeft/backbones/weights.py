"""Where a backbone's weights come from, what they are, and how a file of them is read safely."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # .tar as in MoCo's .pth.tar
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)


@dataclass(frozen=True)
class Weights:
    """What a result row says of a backbone's weights.

    Args:
        source: Kind of place they came from; `given` is a model that the caller built.
        origin: Tag on the hub, name of the file, `package==version`, or `seed 0` for random weights.
        sha256: `content_hash` of the vendor model.
    """

    source: Literal["hub", "file", "embedded", "random", "given"]
    origin: str
    sha256: str


def content_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Hex sha256 over the sorted (name, dtype, shape, bytes) of a state dict, whatever file it came from.

    Take it before position embeddings are resampled: interpolation differs in the last bits between machines.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):  # one at a time, so that a mapping may read its tensors when they are asked for
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_file(path: Path) -> None:
    """Raise unless the path is a file that can hold weights, whoever reads it.

    Raises:
        FileNotFoundError: There is no such file; names those beside it that are close.
        ValueError: A folder, an empty file, or a suffix that no loader reads.
    """
    if path.is_dir():
        inside = _listed(sorted(p.name for p in path.iterdir() if p.suffix in SUFFIXES))
        raise ValueError(f"{path} is a folder; give the weights file itself. It holds {inside}.")
    if not path.is_file():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no weights file {path}: the folder {path.parent} does not exist.")
        beside = sorted(p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES)
        close = difflib.get_close_matches(path.name, beside, n=3)
        hint = f"did you mean {_listed(close)}?" if close else f"{path.parent} holds {_listed(beside)}."
        raise FileNotFoundError(f"There is no weights file {path}; {hint}")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} has the suffix '{path.suffix}'; weights are read from {', '.join(SUFFIXES)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; copy or download it again.")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "no weights"


def load_file(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file or in a torch file of plain tensors, on the CPU.

    A torch file may keep it under `state_dict_ema`, `model_ema`, `state_dict` or `model` (the first of these, as
    in timm); the prefixes `module.` (DDP) and `_orig_mod.` (torch.compile) go. Google's `.npz` has no state dict:
    timm's `model.load_pretrained(path)` reads it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Damaged, another format, a pickle that needs more than tensors, or no state dict in it.
    """
    from timm.models import load_state_dict  # 2 s

    check_file(path)
    if path.suffix == ".npz":
        raise ValueError(f"{path} is in the layout of Google's ViTs, which only timm's ViTs read; choose one of those.")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # bytes that are no pickle make torch's unpickler raise anything
        raise _unreadable(path, error) from error
    return _checked(path, state)


def _unreadable(path: Path, error: Exception) -> ValueError:
    said = f"{error} {error.__cause__ or ''}"
    if isinstance(error, SafetensorError):
        return ValueError(f"{path} is damaged or no safetensors file ({error}); copy or download it again.")
    if "TorchScript" in said:
        return ValueError(
            f"{path} is a TorchScript archive, which is code. Export its state_dict() to .safetensors; OpenAI's "
            "CLIP in this form is open_clip's 'openai' tag."
        )
    # torch says "GLOBAL name", timm "Unsupported globals: name, name."
    names = re.findall(r"GLOBAL (\w[\w.]*\w)", said) + re.findall(r"Unsupported globals: ([\w., ]+)\. ", said)
    if names:
        return ValueError(
            f"{path} is not opened: its pickle is not plain tensors but asks for {names[-1]}, and a pickle can run "
            "any code. If you trust it, load it yourself and save the model's state_dict() as .safetensors."
        )
    reason = (str(error).split(". ")[0] or type(error).__name__).splitlines()[0]
    return ValueError(
        f"{path} is damaged or not a torch file of plain tensors ({reason}); copy or download it again, or save "
        "the model's state_dict() as .safetensors."
    )


def _checked(path: Path, state: object) -> dict[str, Tensor]:
    entries = state if isinstance(state, dict) else {}
    other = [name for name, value in entries.items() if not isinstance(value, Tensor)]
    if other or not entries:
        found = ", ".join(f"'{name}'" for name in other[:5]) or "nothing"
        raise ValueError(
            f"{path} has no state dict where one is looked for (the top, state_dict, model, or their _ema); it holds "
            f"{found} instead of tensors. Save the part you want by itself: torch.save(file['...'], 'weights.pth')."
        )
    return {name: value.detach() for name, value in entries.items()}


def hub_unreachable(backbone: str, error: Exception) -> RuntimeError:
    """The error for weights that a model hub did not deliver, with the three ways out."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return RuntimeError(
        f"The weights of '{backbone}' could not be fetched: no model hub could be reached, or none has them ("
        f"{type(error).__name__}: {reason}). Either give a file you have (pretrained: PATH, or under weights/ of the "
        "cache), or take the embedded backbone, which needs no hub (backbone: vit_small_patch14_saliency), or ask for "
        "random weights (pretrained: none)."
    )
