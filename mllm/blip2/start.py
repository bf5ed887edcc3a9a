"""BLIP-2's second stage begins with the Q-Former of the first."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from mllm.blip2.adapter import learned, read
from mllm.connectors.qformer import QFormerConnector

_TEXT = ("words.", "positions.", "text_mlp.")


def connector_state(path: Path, connector: nn.Module) -> dict[str, Tensor]:
    """A connector's state with queries, Q-Former and the norm before it from the adapter of a first stage.

    The rest of it, the map to the language model, stays as it is. The first stage's heads are left behind, and so is
    the half that reads text, unless the connector reads an instruction (InstructBLIP).

    Args:
        path: The adapter.
        connector: A Q-Former of the same sizes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not an adapter of a first stage, another connector than a Q-Former, or one of other sizes.
    """
    if not isinstance(connector, QFormerConnector):
        raise ValueError(
            f"start: {path} holds a Q-Former, and the connector is {type(connector).__name__}. Give connector "
            "{name: qformer} with the sizes of the first stage."
        )
    found, own = learned(read(path)[1]), connector.state_dict()
    taken = {name: tensor for name, tensor in found.items() if name in own}
    for name, tensor in taken.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"start: {name} is {list(tensor.shape)} in {path} and {list(own[name].shape)} in the connector. Give "
                "the connector the options of the first stage, and read the same tower."
            )
    wanted = {name for name in own if not name.startswith("proj.")}
    left = {name for name in found if name.startswith("qformer.") and not any(part in name for part in _TEXT)}
    if missing := sorted((wanted | left) - set(taken)):
        raise ValueError(
            f"start: {missing[0]} and {len(missing) - 1} more are only in one of {path} and the connector. Give the "
            "connector the options of the first stage."
        )
    return own | taken
