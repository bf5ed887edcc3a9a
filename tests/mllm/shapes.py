"""Shapes that connectors are built from in tests."""

from mllm.shapes import TextShape, VisionShape


def shapes(
    vision_dim: int, text_dim: int, grid: tuple[int, int] = (24, 24), prefix: int = 0, vocab: int = 31
) -> tuple[VisionShape, TextShape]:
    """What a connector reads and what it writes; of the language model only width and vocabulary matter to most."""
    text = TextShape(dim=text_dim, layers=2, heads=2, kv_heads=1, head_dim=text_dim // 2, hidden=8, vocab=vocab)
    return VisionShape(vision_dim, grid, prefix), text
