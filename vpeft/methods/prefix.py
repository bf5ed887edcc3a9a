"""Prefix tuning (Li and Liang, ACL 2021, arXiv:2101.00190).

    attention(Q, [P_k; K], [P_v; V])

P learned keys and values at every block, which every token of every image attends to besides its own.
Shapes: P prefixes, C width of keys and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vpeft.modules import Modules

if TYPE_CHECKING:
    from vpeft.backbones import Backbone


class Prefix(nn.Module):
    """P keys and P values of width d at each of L blocks; 2 L P d parameters: 184,320 for P = 10 on ViT-B/16.

    Initialised Xavier-uniform over [P, d], as NOAH's prefixes (ZhangYuanhan-AI/NOAH @ e9c55f3, MIT; that branch of
    its supernet does not run). Not a no-op at the start. Where attention normalises its keys, it normalises these too;
    they have no position, neither in rotary embeddings nor in Swin's tables and masks, and join every window.

    Differs: the paper generates the prefixes from smaller ones through an MLP while training and keeps only the result;
    here they are trained themselves.

    Args:
        prefixes: P; the paper takes 10 for tables and 200 for summaries, NOAH searches up to 10.
        dropout: On the keys and values; 0 in both.

    Raises:
        ValueError: the backbone reads the projections of its attention as tensors (some Eva models).
    """

    def __init__(self, backbone: Backbone, prefixes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        if prefixes < 1:
            raise ValueError(f"prefix: prefixes is {prefixes}; at least 1 is needed.")
        self.count = prefixes
        self.layers = Modules[KeysValues]()
        for block in backbone.blocks:
            widths = [rows.stop - rows.start for role in "kv" for _, rows in block.find(role)]
            self.layers.append(KeysValues(prefixes, widths[0], widths[1], dropout))

    def attach(self, backbone: Backbone) -> None:
        for block, layer in zip(backbone.blocks, self.layers, strict=True):
            block.add_keys(self.count, layer)


class KeysValues(nn.Module):
    def __init__(self, count: int, key: int, value: int, dropout: float) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(count, key))
        self.values = nn.Parameter(torch.empty(count, value))
        nn.init.xavier_uniform_(self.keys)
        nn.init.xavier_uniform_(self.values)
        self.dropout = nn.Dropout(dropout)

    def forward(self) -> tuple[Tensor, Tensor]:  # P C each
        return self.dropout(self.keys), self.dropout(self.values)
