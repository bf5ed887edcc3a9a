"""Names of a Q-Former's parameters in LAVIS and in transformers."""

from __future__ import annotations

_BERT = {
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "cross.out": "crossattention.output.dense",
    "cross.norm": "crossattention.output.LayerNorm",
    "query_mlp.fc1": "intermediate_query.dense",
    "query_mlp.fc2": "output_query.dense",
    "query_mlp.norm": "output_query.LayerNorm",
    "text_mlp.fc1": "intermediate.dense",
    "text_mlp.fc2": "output.dense",
    "text_mlp.norm": "output.LayerNorm",
}
_BERT |= {
    f"{ours}.{short}": f"{place}.self.{name}"
    for ours, place in {"attention": "attention", "cross": "crossattention"}.items()
    for short, name in {"q": "query", "k": "key", "v": "value"}.items()
}
_TABLES = {"words": "word_embeddings", "positions": "position_embeddings", "norm": "LayerNorm"}


def lavis(name: str) -> str:
    """LAVIS's name of a parameter of `mllm.qformer.QFormer`."""
    if name == "queries":
        return "query_tokens"
    stem, _, kind = name.rpartition(".")
    if stem.startswith("layers."):
        _, number, part = stem.split(".", 2)
        return f"Qformer.bert.encoder.layer.{number}.{_BERT[part]}.{kind}"
    return f"Qformer.bert.embeddings.{_TABLES[stem]}.{kind}"


def transformers(name: str, text: bool = False) -> str:
    """The name in Blip2QFormerModel or InstructBlipQFormerModel; the queries belong to the model around it.

    Args:
        name: Of a parameter of `mllm.qformer.QFormer`.
        text: The model reads text, as InstructBLIP's, whose norm stands among the embeddings.
    """
    if name == "queries":
        return "query_tokens"
    name = lavis(name).removeprefix("Qformer.bert.").replace("attention.self", "attention.attention")
    return name.replace("embeddings.LayerNorm", "embeddings.layernorm" if text else "layernorm")
