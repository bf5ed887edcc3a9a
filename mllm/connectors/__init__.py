"""Connectors between a vision tower and a language model: one file each, one entry each.

A connector is an `nn.Module` that is built from the two shapes it stands between and its own options, and owns every
parameter it adds. It turns features [I, N, vision.dim] into what stands in the sequence, [I, tokens, text.dim].

Shapes: I images of a whole batch, N vision tokens, T tokens of an instruction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn

from mllm.connectors.avg_pool import AvgPool
from mllm.connectors.c_abstractor import CAbstractor
from mllm.connectors.d_abstractor import DAbstractor
from mllm.connectors.gated_xattn import GatedXAttn
from mllm.connectors.linear import Linear
from mllm.connectors.mlp import MLP
from mllm.connectors.pixel_shuffle import PixelShuffle
from mllm.connectors.qformer import QFormerConnector
from mllm.connectors.resampler import Resampler
from mllm.connectors.visual_expert import VisualExpert
from mllm.connectors.zero_init_prompt import ZeroInitPrompt
from mllm.shapes import Layout, TextShape, VisionShape
from vpeft import entries

if TYPE_CHECKING:
    from mllm.decoder import Decoder

CONNECTORS: dict[str, type[nn.Module]] = {
    "avg_pool": AvgPool,
    "c_abstractor": CAbstractor,
    "d_abstractor": DAbstractor,
    "gated_xattn": GatedXAttn,
    "linear": Linear,
    "mlp": MLP,
    "pixel_shuffle": PixelShuffle,
    "qformer": QFormerConnector,
    "resampler": Resampler,
    "visual_expert": VisualExpert,
    "zero_init_prompt": ZeroInitPrompt,
}


class Connector(Protocol):
    """What every entry of CONNECTORS is, besides an nn.Module.

    Attributes:
        tokens: Positions that an image takes in the sequence.
        packable: Whether several samples may share one row of a batch.
    """

    tokens: int
    packable: bool

    def forward(self, features: Tensor) -> Tensor:
        """Features [I, N, vision.dim] to [I, tokens, text.dim]."""
        ...


@runtime_checkable
class InLayer(Protocol):
    """A connector that also acts inside the layers of the language model."""

    def attach(self, decoder: Decoder) -> None:
        """Wire the connector into the decoder; makes no parameters."""
        ...

    def look(self, features: Tensor, layout: Layout) -> None:
        """Called before the language model runs: keeps what its layers read in this forward.

        Args:
            features: [I, N, vision.dim].
            layout: Where the images of the batch are.
        """
        ...


@runtime_checkable
class Instructed(Protocol):
    """A connector that reads the instruction too."""

    reads_text: bool

    def forward(self, features: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Features [I, N, vision.dim] to [I, tokens, text.dim].

        Args:
            features: Of the images.
            text_ids: The instruction that each image comes with, [I, T] long.
            text_mask: 1 at its tokens, 0 at padding; [I, T].
        """
        ...


GIVEN = ("vision", "text")


def build(spec: Mapping[str, Any], vision: VisionShape, text: TextShape) -> nn.Module:
    """Build the connector of a `connector:` entry, `{name: mlp, depth: 2}`.

    Raises:
        ValueError: an unknown connector or option, or one that these shapes have no place for.
    """
    check(spec)
    return entries.build(CONNECTORS, spec, vision, text)


def check(spec: Mapping[str, Any]) -> None:
    """Raise ValueError unless `spec` names a known connector and options that it has.

    Values are checked for their type here and for their meaning by the connector itself.
    """
    entries.check("connector", CONNECTORS, spec, GIVEN)


def options(name: str) -> dict[str, Any]:
    """The options of a connector and their defaults."""
    return entries.options(CONNECTORS, name, GIVEN)


def resolve(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with every option written out, so that a later change of a default changes nothing."""
    return entries.resolve(CONNECTORS, spec, GIVEN)
