"""SAN's weights: files of this project, and the checkpoints that its authors published.

A file of this project holds what is trained. Its metadata has a JSON manifest under `vpeft`:

    format, vpeft, kind       format number, version of the package that wrote it, `openvocab`
    model, seed               settings of `SANConfig`, and what random weights followed
    clip                      sha256 of CLIP without its position table, which is trained
    sha256                    of the tensors
    entries                   sha256 of the rest of the manifest
    normalization, data       mean and std; shorter and longer side of images, what was trained on and its classes
    parameters, result        trained ones by part; the run's id and measures

An official checkpoint (huggingface.co/Mendel192/san) holds that under
other names and, where it is complete, all of CLIP too, both towers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

import vpeft
from vpeft.adapter_file import damaged
from vpeft.backbones.create import local_weights
from vpeft.backbones.weights import check_file, content_hash, load_file
from vpeft.dense.openvocab_schema import SANConfig
from vpeft.dense.san import SAN
from vpeft.dense.san_text import VILD
from vpeft.fetch import cache_dir, write_atomic

# The published models, and the names of their official checkpoints.
MODELS: dict[str, SANConfig] = {
    "san_vit_b16": SANConfig(),
    "san_vit_l14": SANConfig(clip="ViT-L-14-336/openai", taps=[0, 6, 12, 18], clip_scale=0.7),
}
CHECKPOINTS = {"san_vit_b16": "san_vit_b_16.pth", "san_vit_l14": "san_vit_large_14.pth"}

FORMAT = 1
_SIDE = "side_adapter_network."
_TABLE = "visual.positional_embedding"  # trained
_NAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"side_adapter_network\.vit_model\.", "side.vit."),
    (r"side_adapter_network\.query_embed$", "side.queries"),
    (r"side_adapter_network\.query_pos_embed$", "side.query_pos"),
    (r"side_adapter_network\.fusion_layers\.layer_(\d+)\.input_proj\.0\.", r"side.fusion.\1.norm."),
    (r"side_adapter_network\.fusion_layers\.layer_(\d+)\.input_proj\.1\.", r"side.fusion.\1.proj."),
    (
        r"side_adapter_network\.mask_decoder\.(query|pix|attn)_mlp\.layers\.(\d+)\.",
        # A ReLU stands after each affine map and counts.
        lambda m: f"side.decoder.{ {'query': 'query', 'pix': 'pixel', 'attn': 'attention'}[m[1]] }.{2 * int(m[2])}.",
    ),
    (r"side_adapter_network\.mask_decoder\.bias_scaling\.", "side.decoder.rescale."),
    (r"ov_classifier\.bg_embed$", "text.background"),
    (r"clip_visual_extractor\.resblocks\.", "clip.visual.transformer.resblocks."),
    (r"clip_visual_extractor\.", "clip.visual."),
    (r"clip_rec_head\.(ln_post\.|proj$)", r"clip.visual.\1"),
    (r"ov_classifier\.", "clip."),
]


def create(config: SANConfig, seed: int = 0) -> SAN:
    """Build a SAN, with trained weights where `config.weights` names them.

    Raises:
        FileNotFoundError: a file of weights is missing.
        ValueError: there is no such CLIP, or a file or an option does not fit it.
        RuntimeError: CLIP's weights could not be had.
    """
    from vpeft.backbones.load_open_clip import whole

    weights = Path(config.weights).expanduser() if config.weights else None
    pretrained = config.pretrained
    if weights and pretrained == "auto" and holds_clip(weights):
        pretrained = "none"  # replaced by those in the file
    elif pretrained == "auto" and (file := local_weights(f"open_clip:{config.clip}")):
        pretrained = str(file)
    clip, tokenize = whole(config.clip, pretrained, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        san = SAN(
            clip,
            tokenize,
            taps=config.taps,
            clip_scale=config.clip_scale,
            templates=config.templates or VILD,
            image_size=config.image_size,
            dim=config.dim,
            depth=config.depth,
            heads=config.heads,
            queries=config.queries,
            embed=config.embed,
            hidden=config.hidden,
            supervised=config.supervised,
        )
    if weights:
        load(san, weights)
    return san.eval()


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of the official code."""
    return any(name.startswith(_SIDE) for name in state)


def translate(state: Mapping[str, Tensor], first: int) -> dict[str, Tensor]:
    """An official state dict under the names of `SAN`.

    Args:
        state: Of MendelXu/SAN's model.
        first: The block of CLIP that recognition begins with: the last of the taps.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if block := re.match(r"clip_rec_head\.resblocks\.(\d+)\.", name):
            rest = name[block.end() :]
            found[f"clip.visual.transformer.resblocks.{first + int(block[1])}.{rest}"] = tensor
            continue
        for pattern, ours in _NAMES:
            renamed, count = re.subn(rf"^{pattern}", ours, name)
            if count:
                found[renamed] = tensor
                break
    return found


def load(san: SAN, path: Path) -> str:
    """Load a file into a SAN that fits it; returns the content hash of what it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of weights, of another model, or was trained on another CLIP.
    """
    manifest = read_manifest(path)
    if manifest and clip_hash(san) != manifest["clip"]["sha256"]:
        raise ValueError(
            f"{path} was trained on other weights of {manifest['model']['clip']} than these; give the file of those "
            "(model.pretrained, or --clip of tools/segment.py)."
        )
    state = load_file(path)
    if manifest and content_hash(state) != manifest["sha256"]:
        raise damaged(path, "its content does not have the sha256 it was saved with")
    if is_official(state):
        state = translate(state, san.taps[-1])
        whole = san.state_dict()
        if all(name in state for name in whole if name.startswith("clip.") and not name.endswith("attn_mask")):
            _take_clip(san, state)
        state = {name: state[name] for name in san.trained() if name in state}
    try:
        san.load_delta(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return content_hash(state)


def save(path: Path, san: SAN, config: SANConfig, seed: int, said: Mapping[str, Any]) -> str:
    """Write what is trained, atomically, with a manifest; returns the content hash.

    Args:
        path: The file.
        san: What has been trained.
        config: It was built with this.
        seed: And this.
        said: The rest of the manifest.
    """
    tensors = {name: tensor.cpu().clone().contiguous() for name, tensor in san.delta().items()}
    start = config.weights and Path(config.weights).expanduser()
    # The file that training began with is not needed again, unless CLIP comes from it.
    kept = str(start.resolve()) if start and config.pretrained == "auto" and holds_clip(start) else None
    found = {
        "format": FORMAT,
        "vpeft": vpeft.__version__,
        "kind": "openvocab",
        "model": asdict(config) | {"weights": kept},
        "seed": seed,
        "clip": {"sha256": clip_hash(san)},
        "sha256": content_hash(tensors),
        **said,
    }
    found = json.loads(json.dumps(found))
    metadata = {"format": "pt", "vpeft": json.dumps({**found, "entries": _entries(found)})}
    write_atomic(path, lambda temporary: save_file(tensors, temporary, metadata))
    return found["sha256"]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a file says about itself; None of one that is not of this project.

    Raises:
        ValueError: it is of another kind of run or of a newer format.
    """
    check_file(path)
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("vpeft")
        found = None if text is None else json.loads(text)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy or download it again.") from error
    if found is None:
        return None
    if not isinstance(found, dict):
        raise damaged(path, "its manifest is no mapping")
    if found.get("entries", same := _entries(found)) != same:  # files of older versions have none
        raise damaged(path, "its manifest does not have the sha256 it was saved with")
    if found.get("kind") != "openvocab":
        raise ValueError(f"{path} is an adapter of kind {found.get('kind', 'classification')}, not the weights of SAN.")
    if not isinstance(found.get("format"), int):
        raise damaged(path, "its manifest has no format")
    if found["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {found['format']} (written by vpeft {found.get('vpeft')}); vpeft {vpeft.__version__} "
            f"reads up to {FORMAT}. Install a newer vpeft."
        )
    return found


def _entries(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "entries"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def create_trained(path: Path, manifest: Mapping[str, Any], clip: str | None = None) -> SAN:
    """The SAN that a file of this project holds.

    Args:
        path: The file.
        manifest: Its own.
        clip: File of CLIP's weights, where they are no longer where training found them.

    Raises:
        FileNotFoundError, ValueError, RuntimeError: as `create` and `load`.
    """
    try:
        config, seed = SANConfig(**manifest["model"]), int(manifest["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"its manifest describes no SAN: {error}") from error
    san = create(replace(config, pretrained=clip) if clip else config, seed)
    load(san, path)
    return san


def clip_hash(san: SAN) -> str:
    """Content hash of what is frozen: CLIP, both towers, without the position table."""
    return content_hash({name: one for name, one in san.clip.state_dict().items() if name != _TABLE})


def holds_clip(path: Path) -> bool:
    """Whether a file brings CLIP with it, so that no other weights of CLIP are needed."""
    state = load_file(path)
    return is_official(state) and {"ov_classifier.token_embedding.weight", "clip_rec_head.proj"} <= set(state)


def find(model: str, path: str | None) -> Path:
    """The file of weights that was named, or the official one of `model` in the cache.

    Raises:
        ValueError: there is none; a SAN without trained weights segments nothing.
    """
    if path is not None:
        return Path(path).expanduser()
    checkpoint = CHECKPOINTS[model]
    kept = cache_dir() / "weights" / checkpoint
    if not kept.is_file():
        raise ValueError(
            f"There are no weights for {model}: {kept} does not exist. Download {checkpoint} from "
            "https://huggingface.co/Mendel192/san to that place, or give a file with --weights. Nothing is segmented "
            "with random weights."
        )
    return kept


def _take_clip(san: SAN, state: Mapping[str, Tensor]) -> None:
    own = san.state_dict()
    for name, tensor in state.items():
        if name.startswith("clip.") and name in own and tensor.shape != own[name].shape:
            raise ValueError(
                f"{name} is {list(tensor.shape)} in the checkpoint and {list(own[name].shape)} here. Give the "
                "checkpoint that was trained beside this CLIP (model.clip)."
            )
    san.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)
