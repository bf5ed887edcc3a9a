"""Comparing with golden tensors: parameters in under our names, outputs and every gradient of the file out."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

Golden = Mapping[str, Tensor]


def load(module: nn.Module, g: Golden, theirs: Callable[[str], str]) -> None:
    """Give every parameter of a module the file's value; `theirs` translates a name of ours."""
    module.load_state_dict({name: g[f"method/{theirs(name)}"] for name in module.state_dict()})


def gradients(module: nn.Module, theirs: Callable[[str], str]) -> dict[str, Tensor | None]:
    """Of every parameter, under the file's names."""
    return {theirs(name): parameter.grad for name, parameter in module.named_parameters()}


def hold_outputs(g: Golden, outputs: Mapping[str, Tensor], atol: float = 1e-5) -> None:
    for name, output in outputs.items():
        torch.testing.assert_close(output, g[f"output/{name}"], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def backward(g: Golden, outputs: Mapping[str, Tensor]) -> None:
    """Of the file's loss: a sum of outputs times fixed numbers."""
    terms = [(output * g[f"cotangent/{name}"]).sum() for name, output in outputs.items()]
    torch.stack(terms).sum().backward()


def hold_gradients(
    g: Golden,
    found: Mapping[str, Tensor | None],
    tolerance: float = 1e-5,
    rounding: Iterable[str] = (),
    others: Iterable[str] = (),
) -> None:
    """Every gradient of the file, relative to its largest number.

    Args:
        g: The file.
        found: Ours, under the file's names.
        tolerance: Of each.
        rounding: Gradients that are zero but for rounding.
        others: Beginnings of names of gradients that belong to something else.
    """
    in_file = {key.removeprefix("grad/") for key in g if key.startswith("grad/")}
    assert set(found) == {name for name in in_file if not name.startswith(tuple(others))}
    for name, gradient in found.items():
        reference = g[f"grad/{name}"]
        assert gradient is not None, name
        limit = 1e-4 if name in rounding else tolerance * reference.abs().max()
        assert (gradient - reference).abs().max() <= limit, name
