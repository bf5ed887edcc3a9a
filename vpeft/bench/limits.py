"""How far a step is from what its operations allow.

    limit = (1 + g + w) / 3    of full fine-tuning

One third is the forward pass, one the backward pass to the activations, one that to the weights; g is the share of the
blocks that the backward pass goes through, w the share of the backbone's matrices that learn themselves. So it is 1 for
full fine-tuning, 2/3 for what sits in every block and 1/3 for what needs no gradient of the backbone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vpeft.bench.turns import Spread


@dataclass(frozen=True)
class Distance:
    """Of one case, all as shares of full fine-tuning.

    Args:
        limit: As above.
        operations: Those of products, convolutions and attention; what a method computes itself is in them.
        bytes: What all operations read and write.
        time: Measured.
    """

    limit: float
    operations: float
    bytes: float
    time: Spread

    @property
    def distance(self) -> float:
        """Times the limit that a step takes."""
        return self.time.median / self.limit

    @property
    def own(self) -> float:
        """Times what its own operations allow that a step takes."""
        return self.time.median / max(self.limit, self.operations)


def distances(memory: Mapping[str, Any], times: Mapping[str, Spread]) -> dict[str, Distance]:
    """Of every case with counts and times, the farthest first.

    Args:
        memory: `memory` of a file.
        times: Step times as shares of full fine-tuning, by case.
    """
    if "full" not in memory:
        return {}
    full = memory["full"]
    found = {
        case: Distance(
            (1 + memory[case]["blocks_backward"] + memory[case]["weights_trained"]) / 3,
            sum(memory[case]["operations"]) / sum(full["operations"]),
            sum(memory[case]["bytes"]) / sum(full["bytes"]),
            time,
        )
        for case, time in times.items()
        if case in memory and case != "full"
    }
    return dict(sorted(found.items(), key=lambda one: -one[1].distance))
