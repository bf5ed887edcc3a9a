"""Names of a Q-Former's parameters in LAVIS and in transformers, and modules of transformers with given sizes."""

BERT = {
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
for ours, place in {"attention": "attention", "cross": "crossattention"}.items():
    BERT |= {f"{ours}.{x}": f"{place}.self.{name}" for x, name in {"q": "query", "k": "key", "v": "value"}.items()}


def lavis(name: str) -> str:
    """LAVIS's name of a parameter of `mllm.qformer.QFormer`."""
    if name == "queries":
        return "query_tokens"
    stem, _, kind = name.rpartition(".")
    if stem.startswith("layers."):
        _, number, part = stem.split(".", 2)
        return f"Qformer.bert.encoder.layer.{number}.{BERT[part]}.{kind}"
    tables = {"words": "word_embeddings", "positions": "position_embeddings", "norm": "LayerNorm"}
    return f"Qformer.bert.embeddings.{tables[stem]}.{kind}"


def transformers(name: str) -> str:
    """The name in Blip2QFormerModel or InstructBlipQFormerModel, where the queries belong to the model around it."""
    name = lavis(name).removeprefix("Qformer.bert.")
    return name.replace("attention.self", "attention.attention").replace("embeddings.LayerNorm", "embeddings.layernorm")
