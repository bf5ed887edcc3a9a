"""Decode heads: equal to mmseg's and transformers' own, with their counts and state dicts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from tests.golden import golden
from vpeft.dense.heads import DENSE_HEADS, OwnLoss
from vpeft.heads.fcn import FCNHead
from vpeft.heads.linear_bn import LinearBNHead
from vpeft.heads.mask import MaskHead
from vpeft.heads.setr import SETRHead
from vpeft.heads.uper import UPerHead

CHANNELS = [4, 6, 8, 10]
MMSEG = {
    "uper": lambda: UPerHead(CHANNELS, 5, width=8, dropout=0.0),
    "fcn": lambda: FCNHead(CHANNELS, 5, width=8, convs=2, dropout=0.0),
    "setr": lambda: SETRHead(CHANNELS, 5, width=8),
    "setr_auxiliary": lambda: SETRHead(CHANNELS, 5, width=8, convs=2, scale=4, index=0),
}
TINY = {
    "setr": {"width": 8, "index": 0, "convs": 2},
    "uper": {"width": 8},
    "fcn": {"width": 8},
    "linear_bn": {},
    "mask": {"width": 32, "queries": 6, "encoder_layers": 1, "decoder_layers": 2, "heads": 4, "points": 64},
}


def maps(side: int = 16) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, channels, side >> i, side >> i) for i, channels in enumerate(CHANNELS)]


def under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@pytest.mark.parametrize("name", MMSEG)
def test_logits_and_gradients_equal_those_of_mmseg(name):
    g = golden("mmseg_setr" if name.startswith("setr") else "mmseg_heads")
    head = MMSEG[name]()
    head.load_state_dict(under(g, f"{name}/state/"))
    given = [g[f"map{i}"].requires_grad_() for i in range(4)]
    logits = head.eval()(given)
    # Of the largest, which is in the hundreds and thousands: how a processor rounds there is more than small ones are.
    expected_logits = g[f"{name}/output"]
    assert (logits - expected_logits).abs().max() <= 1e-5 * expected_logits.abs().max()
    (logits * g[f"{name}/cotangent"]).sum().backward()
    gradients = {key: p.grad for key, p in head.named_parameters()}
    gradients |= {f"map{i}": x.grad for i, x in enumerate(given) if x.grad is not None}
    expected = under(g, f"{name}/grad/")
    assert gradients.keys() == expected.keys()
    for key, gradient in gradients.items():
        assert (gradient - expected[key]).abs().max() <= 1e-4 * expected[key].abs().max(), key
    # With the statistics of the batch itself.
    torch.testing.assert_close(head.train()(given), g[f"{name}/train_output"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "channels", "count"),
    [
        ("uper", [768] * 4, 32_332_950),
        ("fcn", [768] * 4, 1_808_534),
        ("linear_bn", [768], 116_886),
        ("setr", [1024], 4_171_414),
        ("mask", [768] * 4, 20_336_727),
    ],
)
def test_the_counts_are_those_of_the_docstrings(name, channels, count):
    with torch.device("meta"):
        head = DENSE_HEADS[name](channels, 150)
    assert sum(p.numel() for p in head.parameters()) == count
    assert f"{count:,}" in (DENSE_HEADS[name].__doc__ or "")


def test_the_formulas_of_the_docstrings_hold_for_other_sizes():
    c, k, w, s, n = CHANNELS, 5, 8, 4, 4
    lower = sum(one + 9 * w for one in c[:-1])
    uper = w * (s * c[-1] + 9 * (c[-1] + s * w) + lower + 9 * n * w) + 2 * w * (s + 2 * n) + k * (w + 1)
    fcn = w * (9 * c[2] + 2) + w * (9 * w + 2) + k * (w + 1)
    linear = 2 * sum(c) + k * (sum(c) + 1)
    setr = 2 * c[3] + w * (9 * c[3] + 2) + 3 * w * (9 * w + 2) + k * (w + 1)
    heads = {"uper": MMSEG["uper"](), "fcn": MMSEG["fcn"](), "linear": LinearBNHead(c, k), "setr": MMSEG["setr"]()}
    counts = {name: sum(p.numel() for p in head.parameters()) for name, head in heads.items()}
    assert counts == {"uper": uper, "fcn": fcn, "linear": linear, "setr": setr}


def test_mmsegs_dropout_takes_whole_channels_before_the_classifier():
    head = UPerHead(CHANNELS, 5, width=8, dropout=0.1)
    assert isinstance(head.dropout, torch.nn.Dropout2d)
    assert head.dropout.p == 0.1
    seen: list[Tensor] = []
    head.conv_seg.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    head.dropout.p = 0.5
    head(maps())
    dropped = (seen[0] == 0).flatten(2).all(dim=2)
    assert dropped.any()
    assert not dropped.all()


def test_the_linear_head_normalises_all_maps_on_the_finest_grid():
    given, head = maps(), LinearBNHead(CHANNELS, 5)
    size = given[0].shape[-2:]
    x = torch.cat([F.interpolate(x, size=size, mode="bilinear") for x in given], dim=1)
    x = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(head(given), F.conv2d(x, head.conv_seg.weight, head.conv_seg.bias))


@pytest.mark.parametrize("name", DENSE_HEADS)
def test_every_head_gives_logits_of_every_class_and_compiles_whole(name):
    head = DENSE_HEADS[name](CHANNELS, 5, **TINY[name]).eval()
    given = maps()
    logits = head(given)
    grids = {"fcn": 4, "mask": 64, "setr": 64}
    assert logits.shape == (2, 5, grids.get(name, 16), grids.get(name, 16))
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(given), logits)


def test_the_mask_head_equals_mask2former_of_transformers():
    torch.manual_seed(0)
    swin = SwinConfig(
        embed_dim=8,
        depths=[1] * 4,
        num_heads=[1] * 4,
        window_size=2,
        image_size=64,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    config = Mask2FormerConfig(
        backbone_config=swin,
        id2label={str(i): str(i) for i in range(5)},
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=128,
        dim_feedforward=256,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        num_queries=6,
        train_num_points=64,
    )
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    ours = MaskHead([8, 16, 32, 64], 5, **TINY["mask"]).eval()
    parts = [
        (ours.pixels, theirs.model.pixel_level_module.decoder),
        (ours.queries, theirs.model.transformer_module),
        (ours.classify, theirs.class_predictor),
    ]
    for own, other in parts:
        own.load_state_dict(other.state_dict())
    images, mask = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    mask[0, :20] = 255
    labels = [one.unique()[one.unique() != 255] for one in mask]
    masks = [(one == there[:, None, None]).float() for one, there in zip(mask, labels, strict=True)]
    with torch.no_grad():
        given = list(theirs.model.pixel_level_module.encoder(images).feature_maps)
        torch.manual_seed(1)
        expected = theirs(images, mask_labels=masks, class_labels=labels)
        torch.manual_seed(1)
        loss = ours.loss(given, mask)
        found = ours.proposals(given)[-1]
        torch.testing.assert_close(found.masks, expected.masks_queries_logits)
        torch.testing.assert_close(found.logits, expected.class_queries_logits)
        torch.testing.assert_close(loss, expected.loss.squeeze())
        shown = F.interpolate(found.masks, scale_factor=4, mode="bilinear").sigmoid()
        scores = torch.einsum("bqk,bqhw->bkhw", found.logits.softmax(-1)[..., :-1], shown)
        torch.testing.assert_close(ours(given), scores)


def test_the_mask_head_starts_as_mask2former_does_and_everything_in_it_learns():
    head = MaskHead(CHANNELS, 5, **TINY["mask"])
    offsets = head.pixels.encoder.layers[0].self_attn.sampling_offsets
    assert not offsets.weight.any()
    assert offsets.bias[:8].tolist() == [1, 0, 2, 0, 3, 0, 4, 0]  # a ring of points around each query
    assert isinstance(head, OwnLoss)
    head.loss(maps(), torch.randint(0, 5, (2, 64, 64))).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_the_auxiliary_heads_of_setr_pup_have_the_count_of_its_docstring():
    with torch.device("meta"):
        heads = [SETRHead([1024] * 4, 150), *(SETRHead([1024] * 4, 150, convs=2, scale=4, index=i) for i in range(3))]
    assert {sum(p.numel() for p in head.parameters()) for head in heads[1:]} == {2_990_742}
    assert "2,990,742" in (SETRHead.__doc__ or "")
    assert sum(p.numel() for head in heads for p in head.parameters()) == 13_143_640


class Queries(torch.nn.Module):
    """Makes queries, as a method does."""

    def __init__(self, count: int = 6, width: int = 32) -> None:
        super().__init__()
        self.query_dim = width
        self.table = torch.nn.Parameter(torch.randn(count, width))

    def queries(self) -> Tensor:
        return self.table


def test_a_linked_mask_head_is_one_whose_tables_a_method_makes():
    torch.manual_seed(0)
    linked, plain, method = (
        MaskHead(CHANNELS, 5, **TINY["mask"], linked=True).eval(),
        MaskHead(CHANNELS, 5, **TINY["mask"]).eval(),
        Queries(),
    )
    linked.link(method)
    tables = {
        "queries.queries_embedder.weight": method.table.detach(),
        "queries.queries_features.weight": linked.to_features(method.table).detach(),
    }
    own = {key: value for key, value in linked.state_dict().items() if not key.startswith("to_features.")}
    plain.load_state_dict(own | tables)
    torch.testing.assert_close(linked(maps()), plain(maps()))
    linked.loss(maps(), torch.randint(0, 5, (2, 64, 64))).backward()
    assert method.table.grad is not None
    assert [name for name, p in linked.named_parameters() if p.grad is None] == []
    assert set(linked.state_dict()) == set(own) | {"to_features.weight", "to_features.bias"}


def test_a_copied_mask_head_takes_the_queries_of_the_copied_method():
    both = torch.nn.ModuleList([Queries(), MaskHead(CHANNELS, 5, **TINY["mask"], linked=True).eval()])
    both[1].link(both[0])
    method, head = copy.deepcopy(both)
    before = both[1](maps())
    with torch.no_grad():
        method.table.zero_()
    assert torch.equal(both[1](maps()), before)
    assert not torch.allclose(head(maps()), before)


def test_a_mask_head_that_is_linked_to_nothing_or_to_what_does_not_fit_is_refused():
    head = MaskHead(CHANNELS, 5, **TINY["mask"], linked=True)
    with pytest.raises(ValueError, match="linked is true, and no method was linked"):
        head(maps())
    with pytest.raises(ValueError, match=r"6 of width 32\. Give head and method the same numbers"):
        head.link(Queries(count=7))


@pytest.mark.parametrize("which", ["one image", "all images"])
def test_the_mask_loss_is_finite_where_everything_is_ignored(which):
    head = MaskHead(CHANNELS, 5, **TINY["mask"])
    mask = torch.randint(0, 5, (2, 64, 64))
    mask[:1] = 255
    if which == "all images":
        mask[:] = 255
    loss = head.loss(maps(), mask)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (lambda: FCNHead(CHANNELS, 5, index=4), "index is 4, and the neck makes 4 maps, counted from 0"),
        (lambda: FCNHead(CHANNELS, 5, convs=0), "convs is 0; at least 1 is needed"),
        (lambda: SETRHead(CHANNELS, 5, index=4), "setr: index is 4, and the neck makes 4 maps, counted from 0"),
        (lambda: SETRHead(CHANNELS, 5, convs=0), "setr: convs is 0 and scale is 2; at least 1 of each"),
        (lambda: MaskHead([8], 5), "reads four maps, of strides 4, 8, 16 and 32, and the neck makes 1"),
        (lambda: MaskHead(CHANNELS, 5, width=40), "width is 40; it has to be a multiple of 32"),
    ],
)
def test_what_a_head_cannot_be_is_refused(head, sentence):
    with pytest.raises(ValueError, match=sentence):
        head()
