"""LoRand alone equals the official code; its matrices start as there, and the paper's variant shares its kernels."""

import pytest
import torch
from torch import Tensor, nn

from tests.golden import golden
from tests.zoo import backbone, image
from vpeft.methods import build
from vpeft.methods.lorand import Adapter, Synthesised
from vpeft.tuned import Tuned


def stacked(g: dict[str, Tensor], layer: str, factor: str, branches: int) -> Tensor:
    return torch.stack([g[f"{layer}.{factor}{i}"] for i in range(branches)])


def loaded(g: dict[str, Tensor], layer: str, branches: int) -> dict[str, Tensor]:
    return {
        "p": stacked(g, layer, "A", branches),
        "q": stacked(g, layer, "B", branches),
        "bias": g[f"{layer}.bias"],
    }


def close(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


def test_the_adapter_and_its_gradients_equal_the_official_code():
    g = golden("mod_lorand")
    adapter = Adapter(32, 16, branches=4, kernel=8, shared=False, zero_init=False)
    layers = {"down": "method/adapter.project1", "up": "method/adapter.project2"}
    k = torch.stack([stacked(g, layer, "g", 4) for layer in layers.values()])
    state = {f"{ours}.{n}": t for ours, layer in layers.items() for n, t in loaded(g, layer, 4).items()}
    adapter.load_state_dict({"k": k, **state})
    y = g["input/x"].requires_grad_()
    out = adapter(y, y, y)
    (out * g["cotangent/adapter"]).sum().backward()
    torch.testing.assert_close(out, g["output/adapter"], atol=5e-5, rtol=1e-5)
    close(y.grad, g["grad/input.x"])
    gradients = {"down": "grad/adapter.project1", "up": "grad/adapter.project2"}
    close(adapter.k.grad, torch.stack([stacked(g, layer, "g", 4) for layer in gradients.values()]))
    for ours, layer in gradients.items():
        for name, gradient in loaded(g, layer, 4).items():
            close(adapter.get_parameter(f"{ours}.{name}").grad, gradient)


def test_a_synthesised_map_and_its_gradients_equal_the_official_code():
    g = golden("mod_lorand")
    layer = Synthesised(20, 12, branches=2, kernel=3)
    layer.load_state_dict(loaded(g, "method/layer", 2))
    k, z = stacked(g, "method/layer", "g", 2).requires_grad_(), g["input/z"].requires_grad_()
    out = layer(z, k)
    (out * g["cotangent/layer"]).sum().backward()
    torch.testing.assert_close(out, g["output/layer"], atol=5e-5, rtol=1e-5)
    close(z.grad, g["grad/input.z"])
    close(k.grad, stacked(g, "grad/layer", "g", 2))
    for name, gradient in loaded(g, "grad/layer", 2).items():
        close(layer.get_parameter(name).grad, gradient)


def test_all_factors_start_as_kaimings_uniform_distribution_of_their_columns():
    torch.manual_seed(0)
    adapter = Adapter(64, 32, branches=8, kernel=4, shared=False, zero_init=False)
    bounds = {"k": 4, "down.p": 4, "down.q": 32, "down.bias": 64, "up.p": 4, "up.q": 64, "up.bias": 32}
    assert set(bounds) == {name for name, _ in adapter.named_parameters()}
    for name, fan in bounds.items():
        tensor, wanted = adapter.get_parameter(name).detach(), nn.init.kaiming_uniform_(torch.empty(999, fan), a=5**0.5)
        assert tensor.abs().max() <= wanted.abs().max() * 1.01, name
        assert tensor.abs().max() > wanted.abs().max() * 0.85, name


def test_a_shared_kernel_is_one_for_both_projections():
    torch.manual_seed(0)
    own, shared = (Adapter(12, 6, 2, 3, shared=flag, zero_init=False) for flag in (False, True))
    state = own.state_dict()
    state["k"][1] = state["k"][0]
    own.load_state_dict(state)
    shared.load_state_dict(state | {"k": state["k"][:1]})
    y = torch.randn(2, 5, 12)
    torch.testing.assert_close(shared(y, y, y), own(y, y, y))
    assert shared.k.numel() * 2 == own.k.numel()


def test_it_reads_what_a_branch_adds_and_is_added_with_it():
    body = backbone("timm_vit")
    (method,) = build({"name": "lorand", "kernel": 2, "branches": 1}, body)
    with torch.no_grad():
        for name, parameter in method.named_parameters():
            parameter.fill_(1.0 if name == "mlp.1.up.bias" else 0.0)
    plain, seen = backbone("timm_vit"), []
    for one in (plain, body):
        if one is body:
            Tuned(body, [method], nn.Identity())
        one.blocks[-1].after(lambda x: seen.append(x) or x)
        with torch.no_grad():
            one(image())
    torch.testing.assert_close(seen[1], seen[0] + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branches": 0}, r"^lorand: branches is 0 and kernel 8; at least 1 of each"),
        ({"factor": 0}, r"^lorand: factor is 0; 1 to 32, the width of timm_vit"),
        ({"factor": 33}, r"^lorand: factor is 33; 1 to 32"),
    ],
)
def test_what_lorand_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build({"name": "lorand", **options}, backbone("timm_vit"))
