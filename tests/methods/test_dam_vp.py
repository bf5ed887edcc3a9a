"""DAM-VP equals its official code: clusters of images, the prompt of each, and the meta-prompt that they start from."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from tests.golden import golden
from tests.methods.pixels import SIDES, body, close, method
from tests.zoo import image, tuned
from vpeft.methods.dam_vp import cluster, reptile


def dam_vp(g):
    built = method({"name": "dam_vp", "prompts": 3, "size": 3}, body(16))
    built.attach(SimpleNamespace(look=lambda x: x.flatten(1) @ g["input/feature_weight"].T, edit_pixels=lambda f: None))
    with torch.no_grad():
        for side in SIDES:
            getattr(built.border, side).copy_(torch.cat([g[f"method/prompts.{k}.{side}"] for k in range(3)]))
    built.prototypes, built.clusters = g["input/prototypes"], torch.tensor(3)
    return built


def test_dam_vp_equals_the_official_code():
    g = golden("pix_dam_vp")
    prompts = dam_vp(g)
    prompted = prompts(g["input/image"])
    (prompted * g["cotangent"]).sum().backward()
    assert torch.equal(prompts.choose(g["input/image"]), g["output/chosen"])
    torch.testing.assert_close(prompted, g["output/prompted"], atol=1e-5, rtol=1e-5)
    for side in SIDES:
        close(getattr(prompts.border, side), torch.cat([g[f"grad/prompts.{k}.{side}"] for k in range(3)]))


def average_linkage(points, threshold, most):
    """Stated plainly: all distances between the members of two clusters, averaged."""
    groups = [[i] for i in range(len(points))]
    while len(groups) > 1:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        apart = [torch.cdist(points[groups[i]], points[groups[j]]).mean().item() for i, j in pairs]
        near = min(range(len(pairs)), key=apart.__getitem__)
        if apart[near] >= threshold and len(groups) <= most:
            break
        i, j = pairs[near]
        groups[j] += groups.pop(i)
    return {frozenset(group) for group in groups}


@pytest.mark.parametrize(("threshold", "most"), [(1.5, 30), (2.5, 30), (4.0, 30), (0.0, 4), (100.0, 30)])
def test_clusters_are_those_of_average_linkage(threshold, most):
    points = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    want = average_linkage(points.double(), threshold, most)
    means = cluster(points, threshold, most)
    assert len(means) == len(want)
    wanted = torch.stack([points[sorted(group)].mean(dim=0) for group in sorted(want, key=min)])
    torch.testing.assert_close(means, wanted)


def two_kinds():
    images = torch.cat([image(0) * 0.1 + 2, image(1) * 0.1 - 2])
    return images, [(images[i : i + 1], torch.tensor([i])) for i in range(4)]


def test_dam_vp_gives_each_kind_of_image_its_prompt_and_is_saved_with_its_clusters():
    images, batches = two_kinds()
    model = tuned("timm_vit", "dam_vp")
    prompts = model.methods[0]
    apart = torch.cdist(*[model.backbone.look(images[i : i + 2]) for i in (0, 2)]).min()
    prompts.threshold = float(apart) / 2
    prompts.prepare(model, batches, 0)
    assert int(prompts.clusters) == 2
    assert prompts.choose(images).tolist() == [0, 0, 1, 1]
    before = prompts.prototypes.clone()
    prompts.prepare(model, batches[:1], 1)
    assert torch.equal(prompts.prototypes, before)
    model(images).square().sum().backward()
    assert [bool(used.any()) for used in prompts.border.up.grad] == [True, True, False]
    again = tuned("timm_vit", "dam_vp")
    again.load_delta(model.delta())
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


def test_dam_vp_starts_from_a_meta_prompt(tmp_path):
    _, batches = two_kinds()
    model = tuned("timm_vit", "dam_vp")
    prompts = model.methods[0]
    meta = {name: torch.randn(1, *p.shape[1:]) for name, p in prompts.border.named_parameters()}
    save_file(meta, tmp_path / "meta.safetensors")
    prompts.meta = str(tmp_path / "meta.safetensors")
    prompts.prepare(model, batches, 0)
    for name, parameter in prompts.border.named_parameters():
        assert torch.equal(parameter, meta[name].expand_as(parameter))
    prompts.meta = str(tmp_path / "mta.safetensors")
    with pytest.raises(FileNotFoundError, match="dam_vp: there is no meta-prompt"):
        prompts.prepare(model, batches, 0)
    save_file({"up": meta["up"]}, tmp_path / "mta.safetensors")
    with pytest.raises(ValueError, match="has no 'down' of shape"):
        prompts.prepare(model, batches, 0)


def test_reptile_moves_the_meta_prompt_towards_what_tasks_made_of_it():
    meta = {"up": torch.zeros(1, 3, 2, 2)}
    tasks = [{"up": torch.ones(2, 3, 2, 2)}, {"up": torch.full((1, 3, 2, 2), 4.0)}]
    torch.testing.assert_close(reptile(meta, tasks, 0.5)["up"], torch.ones(1, 3, 2, 2))
