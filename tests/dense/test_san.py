"""What SAN is: who sees whom, what is trained, what is dropped, and what it refuses."""

import copy

import open_clip
import pytest
import torch
from torch import Tensor, nn

from tests.dense.clips import SIDE, small_clip, small_san, words
from vpeft.dense.san import SAN, Proposals, label_map, pad_to_multiple, scores
from vpeft.dense.san_recognition import UNSEEN, additive_mask, recognise
from vpeft.dense.san_side import SideNetwork
from vpeft.dense.san_weights import MODELS

CLASSES = ["cat", "sofa", "floor"]


def full_size(model: str) -> SAN:
    """A SAN of the published shapes, without memory for its weights."""
    spec = MODELS[model]
    config = open_clip.get_model_config(spec.clip.partition("/")[0])
    assert config is not None
    with torch.device("meta"):
        clip = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])
        return SAN(clip, words, taps=spec.taps, clip_scale=spec.clip_scale)


def count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


@pytest.mark.parametrize(
    ("model", "fusion", "decoder", "positions", "background", "total"),
    [
        ("san_vit_b16", 744_384, 1_303_554, 151_296, 512, 8_370_866),
        ("san_vit_l14", 992_192, 1_566_722, 590_848, 768, 9_321_650),
    ],
)
def test_trained_parameters_by_component(model, fusion, decoder, positions, background, total):
    san = full_size(model)
    assert count(san.side.vit.parameters()) == 6_123_120
    assert san.side.queries.numel() + san.side.query_pos.numel() == 48_000
    assert count(san.side.fusion.parameters()) == fusion
    assert count(san.side.decoder.parameters()) == decoder
    assert san.clip.visual.positional_embedding.numel() == positions
    assert san.text.background.numel() == background
    assert count(san.trained().values()) == total == count(p for p in san.parameters() if p.requires_grad)


def test_only_positions_queries_and_norms_but_those_of_fusion_go_undecayed():
    san = small_san()
    assert san.undecayed() <= set(san.trained())
    assert not any("fusion" in name or "decoder" in name or name.endswith("proj.bias") for name in san.undecayed())
    assert "side.vit.blocks.0.norm1.bias" in san.undecayed()
    assert "clip.visual.positional_embedding" in san.undecayed()
    assert "text.background" not in san.undecayed()


def seen_by(san: SAN, tokens: Tensor, bias: Tensor) -> Tensor:
    return recognise(san.clip.visual, 2, tokens, (2, 3), [bias])


def test_the_mask_of_one_query_changes_neither_another_query_nor_clip():
    san = small_san()
    tokens, bias = torch.randn(1, 7, 32), torch.randn(1, 4, 5, 4, 6)
    changed = bias.clone()
    changed[:, :, 1] = torch.randn(1, 4, 4, 6)

    before, after = seen_by(san, tokens, bias), seen_by(san, tokens, changed)

    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3
    others = [0, 2, 3, 4]
    assert torch.equal(before[:, others], after[:, others])


def test_clip_itself_does_not_see_the_added_tokens():
    san = small_san()
    tokens, bias = torch.randn(2, 7, 32), torch.randn(2, 4, 5, 4, 6)
    blocks = san.clip.visual.transformer.resblocks[2:]
    plain = tokens
    joined = torch.cat([tokens[:, :1].expand(-1, 5, -1), tokens], dim=1)
    for block in blocks:
        plain = block(plain)
        joined = block(joined, attn_mask=additive_mask(bias, (2, 3), 4))
    torch.testing.assert_close(joined[:, 5:], plain, atol=1e-6, rtol=1e-6)


def test_what_is_unseen_is_100_below_and_an_added_token_sees_itself_and_the_patches():
    mask = additive_mask(torch.full((1, 4, 5, 4, 6), 0.5), (2, 3), heads=4)
    assert mask.shape == (4, 12, 12)
    assert UNSEEN == -100
    rows = mask[0]
    assert torch.equal(rows[:5, :5], torch.full((5, 5), -100.0).fill_diagonal_(0))
    assert (rows[:5, 5] == -100).all()  # the class token
    assert (rows[:5, 6:] == 0.5).all()
    assert (rows[5:, :5] == -100).all()
    assert (rows[5:, 5:] == 0).all()


def test_the_bias_is_max_pooled():
    bias = torch.zeros(1, 1, 1, 4, 6)
    bias[..., 1, 1] = 7.0
    bias[..., 0, 0] = -9.0
    pooled = additive_mask(bias, (2, 3), heads=2)[:, 0, 2:]
    assert torch.equal(pooled[0], torch.tensor([7.0, 0, 0, 0, 0, 0]))
    assert torch.equal(pooled[0], pooled[1])


def test_one_bias_for_each_remaining_block():
    san = small_san()
    tokens = torch.randn(1, 7, 32)
    first, second = torch.randn(2, 1, 4, 5, 4, 6).unbind()
    both = recognise(san.clip.visual, 2, tokens, (2, 3), [first, second])
    assert not torch.allclose(both, recognise(san.clip.visual, 2, tokens, (2, 3), [first]))


def test_a_bias_for_another_number_of_heads_is_refused():
    with pytest.raises(ValueError, match="3 heads was given to CLIP's 4"):
        additive_mask(torch.zeros(1, 3, 5, 4, 6), (2, 3), heads=4)


def test_scores_leave_the_background_out_after_the_softmax():
    logits = torch.tensor([[[0.0, 0.0, 2.0]]])
    found = scores(Proposals(torch.full((1, 1, 2, 2), 50.0), logits), (4, 4), (4, 4), (4, 4))
    expected = logits.softmax(-1)[0, 0, :2]
    assert found.shape == (1, 2, 4, 4)
    torch.testing.assert_close(found[0, :, 0, 0], expected)
    assert found[0, :, 0, 0].sum() < 0.5


def test_masks_are_cut_to_the_image_and_resized_before_they_are_summed():
    masks = torch.full((1, 1, 2, 2), 10.0)
    masks[..., 1] = -10.0  # the right half of the padded image
    found = scores(Proposals(masks, torch.tensor([[[5.0, 0.0, 0.0]]])), (8, 8), (8, 2), (16, 4))
    assert found.shape == (1, 2, 16, 4)
    assert (found[0, 0] > 0.9).all()


def test_the_label_map_is_the_argmax_of_the_scores():
    torch.manual_seed(0)
    one = Proposals(torch.randn(1, 5, 6, 8), torch.randn(1, 5, 4))
    sizes = ((96, 128), (90, 120), (150, 200))
    assert torch.equal(label_map(one, *sizes), scores(one, *sizes).argmax(dim=1))


def test_padding_goes_to_the_right_and_the_bottom():
    padded = pad_to_multiple(torch.ones(1, 3, 40, 64))
    assert padded.shape == (1, 3, 64, 64)
    assert padded[..., 40:, :].abs().sum() == 0


def test_every_trained_parameter_gets_a_gradient_and_no_other():
    san = small_san().train()
    found = san(torch.randn(2, 3, 48, 80), CLASSES)
    assert [one.logits.shape for one in found] == [(2, 5, 4)] * 2
    sum((one.masks.square().mean() + one.logits.square().mean()) for one in found).backward()
    for name, parameter in san.named_parameters():
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == (name in san.trained()), name


def test_images_of_any_size_and_a_patch_of_14():
    clip = small_clip(image_size=56, patch=14)
    san = SAN(clip, words, taps=(0, 1, 3), clip_scale=0.7, **SIDE).eval()
    (one,) = san(torch.randn(1, 3, 80, 112), CLASSES)
    assert one.masks.shape == (1, 5, 5, 7)
    assert one.logits.shape == (1, 5, 4)


def test_it_is_whole_after_deepcopy_and_under_bf16():
    san = small_san()
    pixels = torch.randn(1, 3, 64, 64)
    (one,) = san(pixels, CLASSES)
    twin = copy.deepcopy(san)
    with torch.no_grad():
        san.text.background.zero_()
        san.side.queries.zero_()
    torch.testing.assert_close(twin(pixels, CLASSES)[0].logits, one.logits, atol=0, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = twin(pixels, CLASSES)
    assert (half.masks - one.masks).abs().max() < 0.1 * one.masks.abs().max()


def test_it_compiles_in_one_graph():
    san = SAN(small_clip(layers=2), words, (0, 1), **(SIDE | {"depth": 1, "supervised": (1,)})).eval()
    rows, pixels = san.text(CLASSES), torch.randn(1, 3, 64, 96)
    compiled = torch.compile(san.propose, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels, rows)[0].logits, san.propose(pixels, rows)[0].logits)


def test_clip_stays_in_evaluation_mode():
    assert not small_san().train().clip.training


def test_the_delta_makes_another_san_the_same():
    san, other = small_san(), small_san()
    with torch.no_grad():
        for parameter in san.trained().values():
            parameter.add_(torch.randn_like(parameter))
    other.load_delta({name: tensor.clone() for name, tensor in san.delta().items()})
    pixels = torch.randn(1, 3, 64, 64)
    assert torch.equal(other(pixels, CLASSES)[0].logits, san(pixels, CLASSES)[0].logits)


def test_the_delta_of_another_san_is_refused():
    delta = small_san().delta()
    del delta["side.queries"]
    with pytest.raises(ValueError, match=r"not of this SAN: side.queries"):
        small_san().load_delta(delta)


@pytest.mark.parametrize("taps", [(0, 2, 1), (0, 4), (), (0, 0, 1)])
def test_taps_that_are_no_blocks_in_order_are_refused(taps):
    with pytest.raises(ValueError, match="taps is"):
        small_san(taps=taps)


def test_another_tower_is_refused():
    clip = nn.Module()
    clip.visual = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="class token"):
        SAN(clip, words)


@pytest.mark.parametrize("supervised", [(1, 2), (3, 2), (), (0, 3)])
def test_supervised_blocks_end_with_the_last(supervised):
    with pytest.raises(ValueError, match="supervised is"):
        SideNetwork(32, 4, **(SIDE | {"supervised": supervised}))


def test_more_fusions_than_places_are_refused():
    with pytest.raises(ValueError, match="at most 4"):
        SideNetwork(32, 4, fusions=5, **SIDE)
