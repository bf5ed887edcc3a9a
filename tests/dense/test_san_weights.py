"""SAN's weights in files: this project's, the official ones, and the refusals."""

import pytest
import torch
from safetensors.torch import save_file

from tests.dense.clips import golden_san, official_names, small_clip, small_san, words
from tests.golden import golden, images
from vpeft.dense.san import SAN
from vpeft.dense.san_weights import find, holds_clip, load


def complete_checkpoint() -> dict[str, torch.Tensor]:
    """The golden model as the official code saves it: all of CLIP is in it, the text tower too."""
    state = official_names(golden("san_full"), "method")
    text = {name: tensor for name, tensor in small_clip(seed=3).state_dict().items() if not name.startswith("visual.")}
    return state | {f"ov_classifier.{name}": tensor for name, tensor in text.items()}


def test_a_saved_delta_is_loaded(tmp_path):
    san, other = small_san(), small_san()
    with torch.no_grad():
        san.side.queries.normal_()
    save_file({name: tensor.clone() for name, tensor in san.delta().items()}, tmp_path / "san.safetensors")
    load(other, tmp_path / "san.safetensors")
    assert torch.equal(other.side.queries, san.side.queries)


def test_an_official_checkpoint_brings_its_own_clip(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"model": complete_checkpoint()}, path)
    assert holds_clip(path)
    from tests.dense.clips import SIDE

    san = SAN(small_clip(seed=5), words, (0, 1, 2), **SIDE).eval()
    load(san, path)
    expected, _ = golden_san()
    rows = torch.randn(4, 24)
    san.clip.logit_scale.data.copy_(expected.clip.logit_scale)
    pixels = images(96, 128)
    assert torch.equal(san.propose(pixels, rows)[0].logits, expected.propose(pixels, rows)[0].logits)
    assert torch.equal(san.clip.token_embedding.weight, small_clip(seed=3).token_embedding.weight)


def test_an_official_checkpoint_without_clip_changes_only_what_is_trained(tmp_path):
    path = tmp_path / "model.safetensors"
    kept = ("side_adapter_network.", "ov_classifier.bg_embed", "clip_visual_extractor.positional_embedding")
    save_file({k: v.contiguous() for k, v in complete_checkpoint().items() if k.startswith(kept)}, path)
    assert not holds_clip(path)
    san = small_san()
    before = san.clip.visual.conv1.weight.clone()
    load(san, path)
    assert torch.equal(san.clip.visual.conv1.weight, before)
    assert torch.equal(san.side.queries, golden("san_full")["method/side.query_embed"])


def test_a_file_of_another_model_is_refused_by_its_name(tmp_path):
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: These weights are not of this SAN"):
        load(small_san(), tmp_path / "other.safetensors")


def test_missing_weights_say_what_to_download_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"Download san_vit_b_16\.pth from https://huggingface\.co/Mendel192/san"):
        find("san_vit_b16", None)


def test_weights_in_the_cache_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("VPEFT_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "san_vit_large_14.pth").touch()
    assert find("san_vit_l14", None) == tmp_path / "weights" / "san_vit_large_14.pth"
