"""Prompts on pixels equal their official code, and do to images what their pages say."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.golden import golden
from tests.runs import tiny_config, write_images
from tests.zoo import image, tuned
from vpeft.backbones import Preprocessing, wrap
from vpeft.config import to_yaml
from vpeft.methods import build
from vpeft.methods.dam_vp import cluster, reptile
from vpeft.methods.evp import shrink
from vpeft.run import train
from vpeft.tuned import Tuned

CLIP = Preprocessing((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic")
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic")
SIDES = ("up", "down", "left", "right")


def body(side, preprocessing=IMAGENET, patch=None):
    model = VisionTransformer(img_size=side, patch_size=patch or side, embed_dim=8, depth=1, num_heads=2, num_classes=0)
    return wrap(model, preprocessing=preprocessing)


def method(spec, backbone):
    (built,) = build(spec, backbone)
    return built


def close(parameter, gradient):
    difference = (parameter.grad - gradient).abs().max() / gradient.abs().max()
    assert difference < 1e-4, difference


def test_vp_equals_the_official_code():
    g = golden("pix_vp")
    border = method({"name": "vp", "size": 5}, body(32))
    border.load_state_dict({f"prompt.{side}": g[f"method/pad_{side}"] for side in SIDES})
    patch = method({"name": "vp", "kind": "fixed_patch", "size": 6}, body(32))
    patch.load_state_dict({"prompt.patch": g["method/patch"]})
    padded, patched = border(g["input/image"]), patch(g["input/image"])
    ((padded * g["cotangent/padding"]).sum() + (patched * g["cotangent/fixed_patch"]).sum()).backward()
    torch.testing.assert_close(padded, g["output/padding"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(patched, g["output/fixed_patch"], atol=1e-5, rtol=1e-5)
    for side in SIDES:
        close(getattr(border.prompt, side), g[f"grad/pad_{side}"])
    close(patch.prompt.patch, g["grad/patch"])


def test_a_random_patch_moves_while_training_and_is_in_the_centre_otherwise():
    vp = method({"name": "vp", "kind": "random_patch", "size": 9}, body(32))
    blank = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(vp.eval()(blank)[:, :, 11:20, 11:20], vp.prompt.patch)
        places = set()
        for _ in range(20):
            moved = vp.train()(blank)
            at = moved[0, 0].nonzero().min(dim=0).values.tolist()
            torch.testing.assert_close(moved[:, :, at[0] : at[0] + 9, at[1] : at[1] + 9], vp.prompt.patch)
            assert moved.count_nonzero() == vp.prompt.patch.count_nonzero()
            places.add(tuple(at))
    assert len(places) > 10


def evp(g):
    built = method({"name": "evp", "size": 5}, body(32, CLIP))
    with torch.no_grad():
        built.perturbation.copy_(g["method/perturbation"])
    return built


def normalised(images, like):
    return (images - torch.tensor(like.mean).view(3, 1, 1)) / torch.tensor(like.std).view(3, 1, 1)


def test_evp_equals_the_official_code():
    g = golden("pix_evp")
    prompt = evp(g)
    canvas = prompt.surround(normalised(g["input/image"], CLIP))
    probs = (canvas.flatten(1) @ g["input/classifier_weight"].T)[:, g["input/matched_index"]]
    ((canvas * g["cotangent/normalised_canvas"]).sum() + (probs * g["cotangent/probs"]).sum()).backward()
    torch.testing.assert_close(canvas, g["output/normalised_canvas"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probs, g["output/probs"], atol=1e-5, rtol=1e-5)
    close(prompt.perturbation, g["grad/perturbation"])


def test_a_step_of_evp_equals_that_of_the_official_code():
    g = golden("pix_evp")
    prompt = evp(g)
    optimiser = torch.optim.SGD(prompt.parameters(), lr=3.0)
    canvas = prompt.surround(normalised(g["input/image"], CLIP))
    probs = (canvas.flatten(1) @ g["input/classifier_weight"].T)[:, g["input/matched_index"]]
    loss = F.cross_entropy(probs, g["input/labels"])
    loss.backward()
    prompt.after_backward(0, 1)
    assert torch.equal((prompt.perturbation.grad != 0).float(), g["output/mask"])
    optimiser.step()
    torch.testing.assert_close(loss, g["output/loss"])
    torch.testing.assert_close(prompt.perturbation.data, g["output/perturbation_after_step"], atol=1e-5, rtol=1e-5)


def test_evp_trains_its_border_only_and_shrinks_the_image_into_it():
    model = tuned("timm_vit", "evp")
    prompt = model.methods[0]
    optimiser = torch.optim.SGD(prompt.parameters(), lr=1.0)
    model(image()).square().sum().backward()
    prompt.after_backward(0, 1)
    optimiser.step()
    assert prompt.perturbation[:, 5:-5, 5:-5].count_nonzero() == 0
    assert prompt.perturbation.count_nonzero() == 6 * 5 * (64 + 64 - 10)
    inside = prompt(image())[:, :, 5:-5, 5:-5]
    shrunk = F.interpolate(image(), (54, 54), mode="bicubic", antialias=True)
    torch.testing.assert_close(inside, shrunk, atol=1e-5, rtol=1e-5)


class Called(TorchDispatchMode):
    """Names of the operations that ran, forward and backward."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("spec", [{"name": "evp", "size": 8}, {"name": "ilm_vp", "inner": 48}], ids=lambda s: s["name"])
def test_a_prompt_before_a_shrunk_image_learns_without_a_backward_that_a_gpu_may_not_repeat(spec):
    # Runs ask for deterministic algorithms, and on a GPU the backward of torch's bicubic resizing is none.
    plain, around = build([{"name": "vp", "size": 5}, spec], body(64))
    cotangent = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    changed = plain(image())
    with Called() as backward:
        (around(changed) * cotangent).sum().backward()
    assert not [name for name in backward.names if "upsample" in name and "backward" in name]
    ours = plain.prompt.up.grad.clone()
    plain.zero_grad()
    theirs = F.interpolate(plain(image()), (48, 48), mode="bicubic", antialias=True)
    (around.surround(theirs) * cotangent).sum().backward()
    assert ours.any()
    torch.testing.assert_close(ours, plain.prompt.up.grad, atol=1e-5, rtol=1e-5)


def test_the_detector_of_that_backward_sees_it():
    images = image().requires_grad_()
    with Called() as backward:
        F.interpolate(images, (48, 48), mode="bicubic", antialias=True).sum().backward()
    assert [name for name in backward.names if "upsample" in name and "backward" in name]


@pytest.mark.parametrize("size", [(24, 40), (17, 33), (40, 56)])
def test_shrinking_equals_the_antialiased_resizing_of_torch(size):
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    theirs = F.interpolate(images, size, mode="bicubic", antialias=True)
    torch.testing.assert_close(shrink(images, size), theirs, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(shrink(images, size), theirs, atol=1e-5, rtol=1e-5)


def test_ilm_vp_equals_the_official_code():
    g = golden("pix_ilm_vp")
    outside = method({"name": "ilm_vp", "inner": 20}, body(33))
    border = method({"name": "ilm_vp", "kind": "border", "inner": 22}, body(32))
    with torch.no_grad():
        outside.program.copy_(g["method/program"])
        border.program.copy_(g["method/additive_program"])
    expansive = outside.surround(normalised(g["input/image"], IMAGENET))
    additive = border(g["input/image32"])
    ((expansive * g["cotangent/expansive"]).sum() + (additive * g["cotangent/additive"]).sum()).backward()
    torch.testing.assert_close(expansive, g["output/expansive"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(additive, g["output/additive"], atol=1e-5, rtol=1e-5)
    close(outside.program, g["grad/program"])
    close(border.program, g["grad/additive_program"])


@pytest.mark.parametrize("spec", [{"name": "evp", "size": 8}, {"name": "ilm_vp", "inner": 48}], ids=lambda s: s["name"])
def test_prompts_on_images_in_0_to_1_follow_the_normalization_of_the_run_and_keep_it(spec):
    plain, other = body(64), body(64)
    other.normalization = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    a, b = method(spec, plain), method(spec, other)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(a(normalised(images, IMAGENET)), normalised(b(images), IMAGENET), atol=1e-5, rtol=1e-5)
    a.load_state_dict(b.state_dict())
    torch.testing.assert_close(a(images), b(images))


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


def test_look_sees_images_without_prompts_and_leaves_no_gradient():
    model = tuned("timm_vit", "vp")
    plain = tuned("timm_vit", "linear")
    features = model.backbone.look(image())
    assert not features.requires_grad
    torch.testing.assert_close(features, plain.backbone(image()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "vp", "size": 32}, "vp: size is 32; a border inside images of 64x64 pixels has 1 to 31"),
        ({"name": "vp", "size": 0}, "vp: size is 0"),
        ({"name": "vp", "kind": "fixed_patch", "size": 64}, "vp: size is 64; a patch in these images has 1 to 63"),
        ({"name": "vp", "std": -1}, "vp: std is -1"),
        ({"name": "evp", "size": 40}, "evp: size is 40; a border inside"),
        ({"name": "ilm_vp", "inner": 64}, "ilm_vp: inner is 64; a square inside these images has a side of 1 to 63"),
        ({"name": "dam_vp", "size": 40}, "dam_vp: size is 40; a border inside"),
        ({"name": "dam_vp", "prompts": 0}, "dam_vp: prompts is 0"),
        ({"name": "dam_vp", "threshold": -1.0}, "threshold -1.0"),
        ({"name": "vp", "kind": "corner"}, "kind is 'corner'"),
    ],
)
def test_a_prompt_that_does_not_fit_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build(spec, body(64))


def test_prompts_stack_on_pixels_in_the_order_of_the_list():
    backbone = body(64)
    methods = build([{"name": "ilm_vp", "inner": 32}, {"name": "vp", "size": 5}], backbone)
    seen = []
    backbone.family.embed, embed = lambda images: seen.append(images) or embed(images), backbone.family.embed
    Tuned(backbone, methods, nn.Identity())(image())
    torch.testing.assert_close(seen[0], methods[1](methods[0](image())))


def test_a_run_of_evp_under_fsdp_in_two_processes_is_that_of_one(tmp_path):
    images, spec = write_images(tmp_path / "images" / "colors"), {"name": "evp", "size": 4}
    train(tiny_config(images, tmp_path / "one", spec, epochs=1))
    config = tiny_config(images, tmp_path / "two", spec, epochs=1, strategy="fsdp", devices=2)
    config.data.batch_size //= 2
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    command = [sys.executable, "tools/train.py", str(tmp_path / "config.yaml")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / name / "run" / "adapter.safetensors") for name in ("one", "two"))
    prompt = one["methods.0.perturbation"]
    assert prompt.count_nonzero() == 6 * 4 * (32 + 32 - 8)
    torch.testing.assert_close(two["methods.0.perturbation"], prompt, rtol=1e-3, atol=1e-4)
