"""Small tokenizers, made here: by words, by bytes as GPT-2's and Llama 3's, by pieces as Llama 2's."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "USER: What colour is the circle? ASSISTANT: The circle is red.",
    "Question: how many shapes are there? Answer: two",
    "a photo of a cat on a blue chair\nOutput:Short answer:",
    "You are a helpful assistant. user assistant system",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system text') }}"
    "{% elif message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def by_bytes(chat: str | None = None, bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `<s>` is put in front if `bos`, and there is no pad token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return _wrapped(backend, chat, bos)


def by_pieces(chat: str | None = None) -> PreTrainedTokenizerFast:
    """BPE that begins a text with a space of its own, as SentencePiece does."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 2, trainer)
    return _wrapped(backend, chat, bos=True, unk="<unk>")


def by_words(words: str, eos: bool = True, pad: bool = True) -> PreTrainedTokenizerFast:
    """One id a word, split at spaces; `<unk>` is 0."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    names = [*special, *dict.fromkeys(words.split())]
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="</s>" if eos else None,
        pad_token="<pad>" if pad else None,
    )


def with_stripping_end(chat: str) -> PreTrainedTokenizerFast:
    """By bytes, with an end of turn that takes the white space behind it, as Phi-3's."""
    tokenizer = by_bytes(chat)
    tokenizer.add_special_tokens({"extra_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    return tokenizer


def _wrapped(backend: Tokenizer, chat: str | None, bos: bool, unk: str | None = None) -> PreTrainedTokenizerFast:
    if bos:
        number = backend.token_to_id("<s>")
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token=unk)
    tokenizer.chat_template = chat
    return tokenizer
