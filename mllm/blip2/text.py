"""Captions as the Q-Former reads them: [CLS], words, an end.

Of BERT's tokenizers [CLS] and [SEP] are taken, as in BLIP-2; of a language model's its beginning and its end of text.
[DEC], which stands for [CLS] where a caption is to be written, is one row behind the tokenizer's words: with
bert-base-uncased 30,522, of 30,523, as in BLIP-2. A tokenizer that ends with [DEC] already needs no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mllm.embedded import EMBEDDED, embedded_folder
from mllm.language import TOKENIZER, downloaded, read_tokenizer
from vpeft.nearest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECODE = "[DEC]"


class Words:
    """Turns captions into ids.

    Args:
        tokenizer: Of transformers.
        max_length: Longest caption in tokens, those at both ends among them; 32 in BLIP-2.

    Raises:
        ValueError: the tokenizer has nothing that begins a text, or nothing that ends one, or `max_length` leaves no
            room between them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        begin = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        for role, names, found in (("begins", "[CLS] or a bos_token", begin), ("ends", "[SEP] or an eos_token", end)):
            if found is None:
                raise ValueError(
                    f"tokenizer: it has no token that {role} a caption, {names}; set one in its tokenizer_config.json, "
                    "or take BERT's, which BLIP-2 uses (hf:google-bert/bert-base-uncased)."
                )
        if max_length < 3:
            raise ValueError(f"data.max_length is {max_length}: a beginning, a word and an end need 3 tokens.")
        assert isinstance(begin, int)
        assert isinstance(end, int)
        self.tokenizer, self.max_length, self.begin, self.end = tokenizer, max_length, begin, end

    @property
    def vocab(self) -> int:
        """Rows of the word table; the last is [DEC]."""
        own = len(self.tokenizer)
        return own if self.tokenizer.get_vocab().get(DECODE) == own - 1 else own + 1

    def ids(self, text: str) -> tuple[list[int], bool]:
        """The ids of a caption, and whether it was too long and has lost its last words."""
        # As the characters they are written with: no caption can end itself.
        inner = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        room = self.max_length - 2
        return [self.begin, *inner[:room], self.end], len(inner) > room

    def batch(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask [B T] long, padded on the right with 0."""
        lines = [self.ids(text)[0] for text in texts]
        ids, mask = (torch.zeros((len(lines), max(map(len, lines), default=0)), dtype=torch.int64) for _ in range(2))
        for i, line in enumerate(lines):
            ids[i, : len(line)], mask[i, : len(line)] = torch.tensor(line), 1
        return ids, mask


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that a `tokenizer:` names.

    Args:
        name: `hf:` and a folder or hub id, or an embedded language model.

    Raises:
        ValueError: there is no such tokenizer, or it cannot be read.
        RuntimeError: it could not be fetched.
    """
    return read_tokenizer(_folder(name))


def _folder(name: str) -> Path:
    if name in EMBEDDED:
        return embedded_folder(name)
    library, _, rest = name.partition(":")
    if library != "hf" or not rest:
        raise ValueError(
            f"There is no tokenizer '{name}' (those of transformers are written hf:FOLDER or hf:HUB-ID); "
            f"{did_you_mean(name, sorted(EMBEDDED))}"
        )
    folder = Path(rest).expanduser()
    if folder.is_dir():
        return folder
    return downloaded(rest, TOKENIZER)
