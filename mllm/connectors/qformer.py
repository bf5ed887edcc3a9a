"""The Q-Former of BLIP-2 (Li et al., ICML 2023, arXiv:2301.12597) and of InstructBLIP (Dai et al., NeurIPS 2023,
arXiv:2305.06500) as a connector.

    H = W QFormer(LN Z)        or W QFormer(LN Z, instruction), of which the rows of the queries are kept

Shapes: I images, N vision tokens, T tokens of an instruction, D width of the Q-Former.
"""

from torch import Tensor, nn

from mllm.qformer import QFormer
from mllm.shapes import TextShape, VisionShape


class QFormerConnector(nn.Module):
    """A norm on the features, a Q-Former and a linear map; d (D + 1) + 2 d_v parameters more than
    `mllm.qformer.QFormer` for vision width d_v and text width d: 107,133,696 for 1408 and 2560, of which 2,816 are the
    norm. Instructed, with a vocab of 30,523 and d = 4096: 188,837,376.

    The norm is LAVIS's `ln_vision`, which follows the vision tower in BLIP-2. The official Q-Former starts from
    BERT-base; this one starts at random.

    Args:
        tokens: Queries; these and all sizes as in BLIP-2.
        dim: D.
        depth: Layers.
        heads: Of the attentions.
        hidden: Hidden width of the feed-forward maps.
        cross_every: Every how many layers the queries read the image.
        dropout: On embeddings, attention weights and every branch.
        instructed: Read the instruction too, as InstructBLIP.
        vocab: Rows of the word table for the instruction; None is as many as the language model has. InstructBLIP reads
            its own BERT's tokens: 30523.
        positions: Longest instruction.

    Raises:
        ValueError: a size below 1; heads that do not divide D; an instruction that is missing or too long.
    """

    packable = True

    def __init__(
        self,
        vision: VisionShape,
        text: TextShape,
        tokens: int = 32,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        cross_every: int = 2,
        dropout: float = 0.1,
        instructed: bool = False,
        vocab: int | None = None,
        positions: int = 512,
    ) -> None:
        super().__init__()
        self.tokens = tokens
        words = (text.vocab if vocab is None else vocab) if instructed else None
        self.norm = nn.LayerNorm(vision.dim)
        self.qformer = QFormer(tokens, vision.dim, dim, depth, heads, hidden, cross_every, dropout, words, positions)
        self.proj = nn.Linear(dim, text.dim)
        if instructed:  # what `isinstance(_, Instructed)` asks for
            self.reads_text = True

    def forward(self, features: Tensor, text_ids: Tensor | None = None, text_mask: Tensor | None = None) -> Tensor:
        if text_ids is None and self.qformer.words is not None:
            raise ValueError("A Q-Former with instructed: true was given no instruction; give text_ids and text_mask.")
        x, _ = self.qformer(self.norm(features), text_ids, text_mask)
        return self.proj(x[:, : self.tokens])
