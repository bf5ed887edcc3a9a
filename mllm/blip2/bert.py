"""BLIP-2's first stage begins with BERT (Devlin et al., NAACL 2019, arXiv:1810.04805), as LAVIS's does.

Tables, self-attention and the head that tells words are BERT's. Its feed-forward maps are those of the text, and once
more those of the queries. Queries, what reads the image, and [DEC] start at random.

    bert.embeddings.*  bert.encoder.layer.*  cls.predictions.*      BertForMaskedLM, BertForPreTraining of transformers
    embeddings.*  encoder.layer.*                                   BertModel, which has no head: ours starts at random
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mllm import qformer_names
from mllm.blip2.model import FirstStage
from mllm.importing import read
from mllm.language import downloaded

_HEAD = {
    "word_head.dense": "cls.predictions.transform.dense",
    "word_head.norm": "cls.predictions.transform.LayerNorm",
    "word_head.bias": "cls.predictions.bias",
}
_RANDOM = ("queries", "cross.")
_OLD = {".gamma": ".weight", ".beta": ".bias"}  # of norms, in the files that were TensorFlow's


def begin_with_bert(source: str, stage: FirstStage) -> str:
    """Give a first stage the weights of a BERT of its sizes.

    Args:
        source: `hf:` and a folder or hub id; or the path of a file or folder.
        stage: Is changed in place.

    Returns:
        What was taken, in words.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no BERT, or one of other sizes or with more words than the stage has.
        RuntimeError: It could not be fetched.
    """
    path = _path(source)
    saved = {_plain(name): tensor.float() for name, tensor in read(path).items()}
    if "embeddings.word_embeddings.weight" not in saved:
        some = ", ".join(sorted(saved)[:3])
        raise ValueError(
            f"start: {path} is no BERT: it has no embeddings.word_embeddings.weight, but {some}, ... Give BERT-base as "
            "transformers saves it (hf:google-bert/bert-base-uncased)."
        )
    own = stage.state_dict()
    names = {f"qformer.{name}": _bert(name) for name in stage.qformer.state_dict()}
    wanted = {name: theirs for name, theirs in names.items() if theirs is not None}
    headed = stage.word_head is not None and "cls.predictions.bias" in saved
    if headed:
        stems = ((name, name.rpartition(".")) for name in own if name.startswith("word_head."))
        wanted |= {name: _HEAD.get(name) or f"{_HEAD[stem]}.{kind}" for name, (stem, _, kind) in stems}
    deeper = f"encoder.layer.{len(stage.qformer.layers)}.attention.self.query.weight"
    missing = [theirs for theirs in wanted.values() if theirs not in saved]
    if missing or deeper in saved:
        what = f"lacks {missing[0]}" if missing else f"has {deeper}"
        raise ValueError(f"start: {path} {what}; give connector the depth of this BERT ({_depth(saved)}).")
    for name, theirs in wanted.items():
        own[name] = _rows(path, name, saved[theirs], own[name])
    stage.load_state_dict(own)
    head = " and its head" if headed else "; its head is not there"
    return f"tables, attention and feed-forward maps of BERT{head}"


def _path(source: str) -> Path:
    library, colon, rest = source.partition(":")
    path = Path(rest if colon and library == "hf" else source).expanduser()
    if colon and library == "hf" and not path.exists():
        return downloaded(rest, ["config.json", "model.safetensors"])
    return path


def _plain(name: str) -> str:
    name = name.removeprefix("bert.")
    for old, new in _OLD.items():
        name = name.removesuffix(old) + new if name.endswith(old) else name
    return name


def _bert(name: str) -> str | None:
    """BERT's name of a parameter of the Q-Former; None is not BERT's."""
    if name.startswith("queries") or any(part in name for part in _RANDOM):
        return None
    return qformer_names.lavis(name).removeprefix("Qformer.bert.").replace("_query.", ".")


def _rows(path: Path, name: str, saved: Tensor, own: Tensor) -> Tensor:
    """A tensor of BERT's; tables that are longer here keep their own last rows, and lose what is longer there."""
    table = name.endswith(("words.weight", "positions.weight")) or name == "word_head.bias"
    longer = name.endswith("positions.weight")
    if saved.shape[1:] != own.shape[1:] or (saved.shape[0] != own.shape[0] and not table):
        raise ValueError(
            f"start: {name} is {list(saved.shape)} in {path} and {list(own.shape)} in the Q-Former; give connector the "
            "sizes of this BERT."
        )
    if len(saved) > len(own) and not longer:
        raise ValueError(
            f"start: {path} has {len(saved)} words, and the tokenizer {len(own)} with [DEC]; give the tokenizer of "
            "this BERT."
        )
    return torch.cat([saved[: len(own)], own[len(saved) :]])


def _depth(saved: dict[str, Tensor]) -> int:
    return 1 + max(int(name.split(".")[2]) for name in saved if name.startswith("encoder.layer."))
