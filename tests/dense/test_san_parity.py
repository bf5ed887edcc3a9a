"""SAN equals its official code: modules, whole model and losses of the golden files, with their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.dense.clips import golden_san, official_names
from tests.golden import golden, images
from vpeft.dense.mask_losses import MaskLoss
from vpeft.dense.san import Proposals, scores
from vpeft.dense.san_recognition import additive_mask, recognise
from vpeft.dense.san_side import Fusion, MaskDecoder, resize_positions
from vpeft.dense.san_weights import translate


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)


def same_gradient(name: str, found: Tensor | None, expected: Tensor) -> None:
    assert found is not None, name
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference < 1e-4, (name, float(difference))


def decoder_names(g: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    official = {
        f"side_adapter_network.mask_decoder.{name.removeprefix(f'{part}/decoder.')}": tensor
        for name, tensor in g.items()
        if name.startswith(f"{part}/decoder.")
    }
    return {name.removeprefix("side.decoder."): tensor for name, tensor in translate(official, 0).items()}


def fusion_names(g: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    pairs = [(ours, theirs, k) for ours, theirs in (("norm", 0), ("proj", 1)) for k in ("weight", "bias")]
    return {f"{ours}.{k}": g[f"{part}/fusion.input_proj.{theirs}.{k}"] for ours, theirs, k in pairs}


def test_the_mask_decoder_with_two_bias_layers():
    g = golden("san_modules")
    decoder = MaskDecoder(12, heads=3, layers=2, embed=8, hidden=10)
    decoder.load_state_dict(decoder_names(g, "method"))
    query, features = (g[f"input/{name}"].requires_grad_() for name in ("query", "feat"))

    masks, biases = decoder(query, features)

    found = {"masks": masks, "bias_layer0": biases[0], "bias_layer1": biases[1]}
    for name, tensor in found.items():
        close(tensor, g[f"output/{name}"])
    sum((tensor * g[f"cotangent/{name}"]).sum() for name, tensor in found.items()).backward()
    same_gradient("query", query.grad, g["grad/input.query"])
    same_gradient("feat", features.grad, g["grad/input.feat"])
    gradients = decoder_names(g, "grad")
    assert set(gradients) == {name for name, _ in decoder.named_parameters()}
    for name, parameter in decoder.named_parameters():
        same_gradient(name, parameter.grad, gradients[name])


def test_fusion_of_a_clip_map_with_patches():
    g = golden("san_modules")
    fusion = Fusion(16, 12)
    fusion.load_state_dict(fusion_names(g, "method"))
    tokens, clip_map = (g[f"input/{name}"].requires_grad_() for name in ("tokens", "clip_map"))

    fused = fusion(tokens, clip_map, (4, 6))

    close(fused, g["output/fused"])
    (fused * g["cotangent/fused"]).sum().backward()
    same_gradient("tokens", tokens.grad, g["grad/input.tokens"])
    same_gradient("clip_map", clip_map.grad, g["grad/input.clip_map"])
    for name, parameter in fusion.named_parameters():
        same_gradient(name, parameter.grad, fusion_names(g, "grad")[name])


def test_the_channel_norm_of_a_map():
    g = golden("san_modules")
    fusion = Fusion(16, 12)
    fusion.norm.load_state_dict({k: g[f"method/norm2d.{k}"] for k in ("weight", "bias")})

    found = fusion.norm(g["input/map2d"])

    close(found, g["output/norm2d"])
    (found * g["cotangent/norm2d"]).sum().backward()
    for name, parameter in fusion.norm.named_parameters():
        same_gradient(name, parameter.grad, g[f"grad/norm2d.{name}"])


def test_the_additive_mask_and_its_max_pooling():
    g = golden("san_modules")
    bias = g["input/bias"].requires_grad_()

    mask = additive_mask(bias, (3, 4), heads=4)

    close(mask, g["output/formatted_bias"])
    (mask * g["cotangent/formatted_bias"]).sum().backward()
    same_gradient("bias", bias.grad, g["grad/input.bias"])
    close(additive_mask(g["input/bias_one_head"], (3, 4), heads=4), g["output/formatted_bias_one_head"])


def test_positions_of_another_grid():
    g = golden("san_modules")
    close(resize_positions(g["input/pos"], (4, 4), (3, 5), prefix=1), g["output/pos_resized"])


def test_the_whole_model_its_intermediates_and_every_gradient():
    san, g = golden_san()
    san.train()
    rows = F.normalize(torch.cat([g["input/text_embeds"], san.text.background]), dim=-1)
    pixels = images(96, 128)

    maps, tokens, grid = san.look(pixels)
    for index, clip_map in enumerate(maps):
        close(clip_map[:1], g[f"output/clip_map_{index}"])
    close(tokens[:, :1], g["output/clip_cls_2"])
    for index, (_, biases) in enumerate(san.side(pixels, maps)):
        close(biases[0][:1], g[f"output/attn_bias_{index}"])
        close(recognise(san.clip.visual, 2, tokens, grid, biases), g[f"output/region_embed_{index}"])

    proposals = san.propose(pixels, rows)
    assert len(proposals) == 2
    loss = torch.zeros(())
    for index, one in enumerate(proposals):
        close(one.masks, g[f"output/masks_{index}"])
        close(one.logits, g[f"output/class_logits_{index}"])
        loss = loss + (one.masks * g[f"cotangent/masks_{index}"]).sum()
        loss = loss + (one.logits * g[f"cotangent/class_logits_{index}"]).sum()
    loss.backward()
    gradients = translate(official_names(g, "grad"), first=2)
    gradients = {name: tensor for name, tensor in gradients.items() if name in san.trained()}
    assert set(gradients) == set(san.trained())
    for name, parameter in san.trained().items():
        same_gradient(name, parameter.grad, gradients[name])
    assert all(p.grad is None for name, p in san.named_parameters() if name not in san.trained())

    semantic = scores(proposals[-1], (96, 128), (96, 128), (96, 128))
    close(semantic[..., ::8, ::8], g["output/semantic_stride8"])


def test_only_the_last_supervised_block_is_decoded_in_evaluation():
    san, g = golden_san()
    rows = F.normalize(torch.cat([g["input/text_embeds"], san.text.background]), dim=-1)
    (last,) = san.propose(images(96, 128), rows)
    close(last.masks, g["output/masks_1"])


@pytest.fixture
def losses(monkeypatch):
    """The golden losses; torch.rand hands out the stored points in the order in which they were drawn."""
    g = golden("san_losses")
    drawn = []
    for output in range(2):
        drawn += [g["input/matcher_points"][output, image][None] for image in range(2)]
        drawn += [g["input/candidate_points"][output], g["input/random_points"][output]]
    real = iter(drawn)

    def stored(*shape, **_):
        points = next(real)
        assert points.shape == torch.Size(shape)
        return points

    monkeypatch.setattr(torch, "rand", stored)
    return g


def test_matching_and_losses(losses):
    g = losses
    names = ("pred_masks", "pred_logits", "aux_masks", "aux_logits")
    inputs = {name: g[f"input/{name}"].requires_grad_() for name in names}
    loss = MaskLoss(4, points=20)
    proposals = [Proposals(inputs[f"{kind}_masks"], inputs[f"{kind}_logits"]) for kind in ("aux", "pred")]

    total, terms = loss(
        proposals, [g[f"input/masks_{i}"].bool() for i in range(2)], [g[f"input/labels_{i}"] for i in range(2)]
    )

    official = {"class": "loss_ce", "mask": "loss_mask", "dice": "loss_dice"}
    renamed = {
        name.replace(name.partition("_")[0], official[name.partition("_")[0]]): one for name, one in terms.items()
    }
    assert len(renamed) == 6
    for name, term in renamed.items():
        torch.testing.assert_close(term, g[f"output/{name}"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(total, g["output/total"], atol=1e-4, rtol=1e-5)
    sum(term * g[f"cotangent/{name}"] for name, term in renamed.items()).backward()
    for name, tensor in inputs.items():
        same_gradient(name, tensor.grad, g[f"grad/input.{name}"])


def test_the_assignment(losses):
    g = losses
    loss = MaskLoss(4, points=20)
    for output in ("main", "aux"):
        kind = {"main": "pred", "aux": "aux"}[output]
        masks = [g[f"input/masks_{i}"].float() for i in range(2)]
        labels = [g[f"input/labels_{i}"] for i in range(2)]
        match = loss.criterion.matcher(g[f"input/{kind}_masks"], g[f"input/{kind}_logits"], masks, labels)
        for image, (query, target) in enumerate(match):
            assert query.tolist() == g[f"output/{output}_query_{image}"].tolist()
            assert target.tolist() == g[f"output/{output}_target_{image}"].tolist()
        torch.rand(*g["input/candidate_points"][0].shape), torch.rand(*g["input/random_points"][0].shape)
