"""MTLoRA: one map against the official code, and the tasks' way through a block against a plain statement of it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden import golden
from tests.zoo import backbone, image, shake
from vpeft.methods.mtlora import MTLoRA, TaskUpdate, stage_ends
from vpeft.tuned import Tuned

TASKS = ("a", "b")
RANKS = {"shared": 4, "a": 2, "b": 3}


def load(update: TaskUpdate, g: dict[str, Tensor], part: str) -> dict[str, nn.Parameter]:
    """Fill a map with golden tensors; its parameters under the official names."""
    named: dict[str, nn.Parameter] = {}
    for index, task in enumerate(TASKS):
        named[f"lora_tasks_A.{task}"] = update.down[index].weight
        named[f"lora_tasks_B.{task}"] = update.tasks[index].up[0]
    if update.mode == "addition":
        named |= {f"lora_norm.{name}": parameter for name, parameter in update.norm.named_parameters()}
    else:
        named |= {"lora_shared_A": update.down[2].weight, "lora_shared_B": update.shared.up[0]}
    assert {f"{part}.{name}" for name in named} == {
        key.removeprefix("method/") for key in g if key.startswith(f"method/{part}.") and ".linear." not in key
    }
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(g[f"method/{part}.{name}"])
    return named


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("mode", ["matrix", "matrixv2", "addition"])
def test_outputs_and_gradients_of_a_map_equal_the_official_code(mode):
    g = golden("mod_mtlora")
    update = TaskUpdate(12, 20, 4, {t: RANKS[t] for t in TASKS}, 1.5, {"a": 0.5, "b": 2.0}, mode).eval()
    named = load(update, g, mode)
    w, b = (g[f"method/{mode}.linear.{k}"].requires_grad_() for k in ("weight", "bias"))
    x, *own = (g[f"input/{k}"] for k in ("x", "x_a", "x_b"))
    # The file's gradients of `matrix` are of both: with inputs of the tasks' own, and with none.
    runs = {mode: own} | ({"matrix_nox": None} if mode == "matrix" else {})

    loss = torch.zeros(())
    for name, inputs in runs.items():
        trunk, parts = update(x, F.linear(x, w, b), inputs)
        for part, y in zip(("shared", "a", "b"), (trunk, *parts), strict=True):
            torch.testing.assert_close(y, g[f"output/{name}_{part}"], atol=1e-5, rtol=1e-5)
            loss = loss + (y * g[f"cotangent/{name}_{part}"]).sum()
    loss.backward()

    for name, parameter in named.items():
        close(parameter.grad, g[f"grad/{mode}.{name}"])
    close(w.grad, g[f"grad/{mode}.linear.weight"])
    close(b.grad, g[f"grad/{mode}.linear.bias"])


def test_a_map_without_branches_equals_the_official_one():
    g = golden("mod_mtlora")
    update = TaskUpdate(12, 20, 4, {}, 1.5, {}).eval()
    with torch.no_grad():
        update.down[0].weight.copy_(g["method/shared_only.lora_shared_A"])
        update.shared.up[0].copy_(g["method/shared_only.lora_shared_B"])
    x = g["input/x"]
    trunk, parts = update(x, F.linear(x, g["method/shared_only.linear.weight"], g["method/shared_only.linear.bias"]))
    torch.testing.assert_close(trunk, g["output/shared_only"], atol=1e-5, rtol=1e-5)
    assert parts == []


def branched(body: str, **options) -> tuple[Tuned, MTLoRA]:
    bone = backbone(body)
    method = MTLoRA(bone, TASKS, rank=4, task_rank=2, **options)
    return shake(Tuned(bone, [method], nn.Identity()).eval()), method


def pair(update: TaskUpdate, index: int, x: Tensor) -> Tensor:
    return update.tasks[index].scale * x @ update.down[index].weight.T @ update.tasks[index].up[0].T


@pytest.mark.parametrize("body", ["timm_vit", "timm_swin"])
def test_a_task_passes_a_block_as_the_equations_say(body):
    """The block by hand: W meets the trunk's x, the task's own x its pair; norm and activation are the block's."""
    model, method = branched(body)
    block = model.backbone.blocks[method.ends[0]]
    seen: dict[str, Tensor] = {}
    vendor = block.module

    def note(name: str):
        return lambda module, args, y: seen.__setitem__(name, y)

    block.before(lambda x: seen.__setitem__("x", x) or x)
    for name in ("fc1", "fc2"):
        linear = getattr(vendor.mlp, name)
        linear.register_forward_hook(note(f"W {name}"), prepend=True)  # W x + b, before any update
    vendor.attn.register_forward_hook(note("attention"))
    vendor.norm2.register_forward_hook(note("h"))
    model(image())

    update = method.branches[0]
    if body == "timm_vit":
        _, *attention = seen["attention"].tensor_split(3)
    else:  # windows, in the order of the batch, are put together by timm's own code
        attention = [s - seen["x"].view(s.shape) for s in attention_of(vendor, model, seen["x"], update)]
    for index in range(2):
        stream = seen["x"] + attention[index].view(seen["x"].shape)
        h = F.layer_norm(stream, stream.shape[-1:], vendor.norm2.weight, vendor.norm2.bias, vendor.norm2.eps)
        flat = h.view(seen["h"].shape)
        hidden = F.gelu(seen["W fc1"] + pair(update.fc1.update, index, flat))
        stream = stream.view(flat.shape) + seen["W fc2"] + pair(update.fc2.update, index, hidden)
        torch.testing.assert_close(method.leaving(method.ends[0])[TASKS[index]], stream, atol=1e-5, rtol=1e-5)


def attention_of(vendor, model: Tuned, x: Tensor, update) -> list[Tensor]:
    """x + what attention adds for each task: the attention run once more with the task's projection in W."""
    streams = []
    hooks = dict(vendor.attn.proj._forward_hooks)
    vendor.attn.proj._forward_hooks.clear()
    stored = vendor.attn.proj.weight.data.clone()
    for index in range(2):
        low = update.proj.update
        delta = low.tasks[index].scale * low.tasks[index].up[0] @ low.down[index].weight
        vendor.attn.proj.weight.data = stored + delta.data
        h = F.layer_norm(x, x.shape[-1:], vendor.norm1.weight, vendor.norm1.bias, vendor.norm1.eps)
        streams.append(x + vendor._attn(h))
        vendor.attn.proj.weight.data = stored
    vendor.attn.proj._forward_hooks.update(hooks)
    return streams


@pytest.mark.parametrize("body", ["timm_vit", "timm_swin"])
def test_branches_leave_the_trunk_what_it_is(body):
    model, method = branched(body)
    with torch.no_grad():
        before = model(image())
        for branch in method.branches:
            for fork in (branch.proj, branch.fc1, branch.fc2):
                for task in fork.update.tasks:
                    task.up[0].zero_()
        assert torch.equal(model(image()), before)


def test_branches_end_each_stage_and_fill_the_count_of_the_formula():
    swin = backbone("timm_swin")
    assert stage_ends(swin.blocks) == [1, 3]
    method = MTLoRA(swin, TASKS, rank=4, task_rank=2)
    dims = [block.dim for block in swin.blocks]
    stages = [32, 64]
    assert sum(p.numel() for p in method.parameters()) == 16 * 4 * sum(dims) + 12 * 2 * len(TASKS) * sum(stages)
    assert {name.partition("layers.")[2].partition(".")[2] for name in method.adopts(swin) if "layers" in name} >= {
        "downsample.reduction.weight",
        "blocks.0.attn.relative_position_bias_table",
        "blocks.0.norm1.weight",
    }


def test_what_cannot_be_is_refused_in_words():
    body = backbone("timm_vit")
    with pytest.raises(ValueError, match=r"rank is 0 and task_rank 4; at least 1"):
        MTLoRA(body, rank=0)
    with pytest.raises(ValueError, match="each may be named once"):
        MTLoRA(body, ("a", "a"))
    with pytest.raises(ValueError, match=r"cannot branch off at 'proj'.*read as a tensor"):
        MTLoRA(backbone("open_clip"), TASKS, dropout=0.0)
    model, _ = branched("timm_vit")
    with pytest.raises(ValueError, match="a, b have maps of their own"):
        model.merge()


def test_a_branched_block_compiles_whole():
    torch._dynamo.reset()
    model, method = branched("timm_swin")

    def run(images: Tensor) -> list[Tensor]:
        return [model(images), *(stream for end in method.ends for stream in method.leaving(end).values())]

    expected = run(image())
    found = torch.compile(run, fullgraph=True, backend="aot_eager")(image())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
