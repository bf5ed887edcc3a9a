"""A small SAN on a small CLIP, and the one of the golden file."""

from typing import Any

import open_clip
import torch
from torch import Tensor

from tests.golden import golden
from vpeft.dense.san import SAN
from vpeft.dense.san_weights import translate

TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
SIDE: dict[str, Any] = {
    "image_size": 64,
    "dim": 24,
    "depth": 3,
    "heads": 3,
    "queries": 5,
    "embed": 16,
    "hidden": 20,
    "supervised": (2, 3),
}


def words(sentences: list[str]) -> Tensor:
    """Token ids by spelling, so that different sentences differ; the largest id ends each, as in CLIP."""
    rows = torch.zeros(len(sentences), TEXT["context_length"], dtype=torch.int64)
    for row, sentence in zip(rows, sentences, strict=True):
        ids = [sum(ord(letter) * (i + 1) for i, letter in enumerate(word)) % 62 + 1 for word in sentence.split()][-7:]
        row[: len(ids) + 1] = torch.tensor([*ids, 63])
    return rows


def small_clip(image_size: int = 64, patch: int = 16, width: int = 32, layers: int = 4, seed: int = 0) -> Any:
    """A random CLIP; 4 heads in its visual tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision = {
            "image_size": image_size,
            "patch_size": patch,
            "width": width,
            "layers": layers,
            "head_width": width // 4,
        }
        return open_clip.CLIP(24, vision, TEXT, quick_gelu=True).eval()  # pyright: ignore[reportArgumentType]


def small_san(**options: Any) -> SAN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SAN(small_clip(), words, **({"taps": (0, 1, 2)} | options), **SIDE).eval()


def official_names(g: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The golden file's tensors as the official checkpoint names them."""
    found = {}
    for name, tensor in g.items():
        if not name.startswith((f"{part}/", "base/")):
            continue
        name = name.partition("/")[2]
        if name.startswith("side."):
            found[f"side_adapter_network.{name.removeprefix('side.')}"] = tensor
        elif name == "bg_embed":
            found["ov_classifier.bg_embed"] = tensor
        elif block := name.partition("visual.transformer.resblocks.")[2]:
            number, _, rest = block.partition(".")
            place = (
                f"clip_rec_head.resblocks.{int(number) - 2}"
                if int(number) >= 2
                else f"clip_visual_extractor.resblocks.{number}"
            )
            found[f"{place}.{rest}"] = tensor
        elif name in ("visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"):
            found[f"clip_rec_head.{name.removeprefix('visual.')}"] = tensor
        else:
            found[f"clip_visual_extractor.{name.removeprefix('visual.')}"] = tensor
    return found


def golden_san() -> tuple[SAN, dict[str, Tensor]]:
    """The SAN of san_full, its parameters in place."""
    g, san = golden("san_full"), small_san()
    state = translate(official_names(g, "method"), first=2)
    missing, unexpected = san.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("clip.") and not name.startswith("clip.visual.") for name in missing), missing
    with torch.no_grad():
        san.clip.logit_scale.copy_(g["input/logit_scale"])
    return san, g
