"""What is trained in a language model: one function a method, one entry each.

LoRA, (IA)^3 and prefix tuning are Hugging Face peft's. A method changes the model in place, before any connector is
attached to it, and marks what learns; that is kept in float32 whatever the frozen weights are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mllm.language import Language
from mllm.placement import maps, matched, present, word_embeddings
from vpeft import entries


def frozen(language: Language) -> None:
    """Nothing is trained: BLIP-2, Flamingo, LLaVA's first stage."""


def full(language: Language, embeddings: bool = True) -> None:
    """All of it is trained, as in LLaVA's second stage.

    Args:
        language: Changed in place.
        embeddings: Of the words too, in and out.
    """
    words = set() if embeddings else {id(p) for p in word_embeddings(language.model)}
    _learn(p for p in language.model.parameters() if id(p) not in words)


def lora(
    language: Language,
    r: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: Sequence[str] | str | None = None,
    use_dora: bool = False,
) -> None:
    """LoRA (Hu et al., ICLR 2022, arXiv:2106.09685): W + alpha / r B A.

    Or DoRA (Liu et al., ICML 2024, arXiv:2402.09353), which is this with the norm of every row learned apart.

    r (in + out) a map; 319,815,680 for r = 128 on all maps of LLaMA-7B, which with alpha = 256 and dropout 0.05 is
    LLaVA-1.5's.

    Args:
        language: Changed in place.
        r: Rank.
        alpha: Scale, over r.
        dropout: Of what A reads.
        targets: Maps by role (`[q, v]`; q k v o gate up down), or one regular expression that the whole name of a
            module must match (`model[.]layers[.][0-9]+[.]mlp[.].*`). None is every map of the layers.
        use_dora: DoRA.

    Raises:
        ValueError: r below 1, or targets that name nothing.
    """
    from peft import LoraConfig

    if r < 1:
        raise ValueError(f"lora: r is {r}; give 1 or more.")
    names = matched("lora", language.model, targets)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=names,
        use_dora=use_dora,
    )
    _inject(language, config)


def qlora(
    language: Language,
    r: int = 64,
    alpha: float = 16.0,
    dropout: float = 0.05,
    targets: Sequence[str] | str | None = None,
) -> None:
    """QLoRA (Dettmers et al., NeurIPS 2023, arXiv:2305.14314): LoRA beside frozen maps in 4-bit NormalFloat.

    bitsandbytes quantises the maps of the layers, doubly, when the model is moved to a GPU. The defaults are the
    paper's for models of up to 13B.

    Args:
        language: Changed in place.
        r: Rank.
        alpha: Scale, over r.
        dropout: Of what A reads.
        targets: As of `lora`.

    Raises:
        ValueError: no GPU, no bitsandbytes, or targets that name nothing.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            "qlora keeps the language model in 4 bits, which bitsandbytes computes on a GPU only, and there is none "
            "here. Use lora."
        )
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("qlora needs the package bitsandbytes; install it, or use lora.") from error
    for name, module in maps(language.model):
        packed = Linear4bit(
            module.in_features,
            module.out_features,
            bias=module.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        packed.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4")
        packed.bias = module.bias
        language.model.set_submodule(name, packed)
    language.model.is_loaded_in_4bit = True  # peft asks for this
    lora(language, r, alpha, dropout, targets)


def ia3(language: Language, targets: Sequence[str] = ("k", "v"), inputs: Sequence[str] = ("down",)) -> None:
    """(IA)^3 (Liu et al., NeurIPS 2022, arXiv:2205.05638): l * W x, or W (l * x), one l for every channel.

    614,400 on LLaMA-7B.

    Args:
        language: Changed in place.
        targets: Roles of maps of which the output is scaled; the paper's.
        inputs: Roles of maps of which the input is scaled; the paper scales what the second map of the MLP reads.

    Raises:
        ValueError: a role that names nothing.
    """
    from peft import IA3Config

    scaled = matched("ia3", language.model, targets) if targets or not inputs else []
    read = matched("ia3", language.model, inputs) if inputs else []
    _inject(language, IA3Config(target_modules=scaled + read, feedforward_modules=read))


def prefix(language: Language, tokens: int = 20, project: int | None = None) -> None:
    """Prefix tuning (Li & Liang, ACL 2021, arXiv:2101.00190): keys and values in front of every layer's own.

    2 L tokens G head_dim for G heads of keys and values, 5,242,880 for 20 on LLaMA-7B. They carry no rotary position.

    Args:
        language: Changed in place: its `prefix` is set.
        tokens: Of the prefix; 20 in PEFT-MLLM (arXiv:2406.05130).
        project: Width of the MLP that makes the prefix from an embedding of its tokens; None learns it as it is.

    Raises:
        ValueError: fewer than one token.
    """
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    if tokens < 1:
        raise ValueError(f"prefix: tokens is {tokens}; give 1 or more.")
    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=tokens,
        prefix_projection=project is not None,
        encoder_hidden_size=project,  # type: ignore[arg-type]
    )
    language.prefix = Prefix(get_peft_model(language.model, config))


class Prefix(nn.Module):
    """The prefix of a language model, as a cache that stands in front of a batch.

    Args:
        model: peft's, which makes the cache.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder: nn.Module = model.prompt_encoder["default"]
        self.tokens: int = model.peft_config["default"].num_virtual_tokens
        self._peft = [model]  # in a list: it holds the language model, which is not owned here

    def forward(self, rows: int) -> Any:
        """The cache of a batch of so many rows."""
        return self._peft[0].get_prompt(rows)


def bitfit(
    language: Language,
    create: bool = False,
    targets: Sequence[str] = ("q", "o", "gate", "up", "down"),
    norms: bool = False,
) -> None:
    """BitFit (Ben Zaken et al., ACL 2022, arXiv:2106.10199): the biases.

    LLaMA has none. LLaMA-Adapter V2 (Gao et al., 2023, arXiv:2304.15010) gives it some, which start at zero: 1,097,728
    on 7B, and with the norms, which it trains too, 266,240 more.

    Args:
        language: Changed in place.
        create: Give a bias to the maps of `targets` that have none.
        targets: Roles; the default is that of LLaMA-Adapter V2's code, which leaves out k and v.
        norms: Train the weights of the norms too.

    Raises:
        ValueError: there is no bias and none is to be made.
    """
    model = language.model
    if create:
        for name in matched("bitfit", model, [role for role in targets if present(model, role)]):
            module = model.get_submodule(name)
            if module.bias is None:
                module.bias = nn.Parameter(torch.zeros_like(module.weight[:, 0]))
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    if not biases:
        raise ValueError(
            f"bitfit found no bias in {language.name}: models of its kind have none. Set create to true, which adds "
            "some as LLaMA-Adapter V2 does, or use another method."
        )
    found = [module for module in model.modules() if "Norm" in type(module).__name__] if norms else []
    _learn([*biases, *(p for module in found for p in module.parameters(recurse=False))])


LANGUAGE_METHODS: dict[str, Callable[..., None]] = {
    "frozen": frozen,
    "full": full,
    "lora": lora,
    "qlora": qlora,
    "prefix": prefix,
    "ia3": ia3,
    "bitfit": bitfit,
}
GIVEN = ("language",)


def apply(language: Language, spec: Mapping[str, Any]) -> None:
    """Change a language model as a `language_method:` entry says, `{name: lora, r: 8}`.

    Raises:
        ValueError: an unknown method or option, or one that finds nothing to train in this model.
    """
    check(spec)
    entries.build(LANGUAGE_METHODS, spec, language)


def check(spec: Mapping[str, Any]) -> None:
    """Raise ValueError unless `spec` names a known method and options that it has."""
    entries.check("language_method", LANGUAGE_METHODS, spec, GIVEN)


def resolve(spec: Mapping[str, Any]) -> dict[str, Any]:
    """`spec` with every option written out, so that a later change of a default changes nothing."""
    return entries.resolve(LANGUAGE_METHODS, spec, GIVEN)


def _inject(language: Language, config: Any) -> None:
    from peft import inject_adapter_in_model

    inject_adapter_in_model(config, language.model)
    _learn(p for p in language.model.parameters() if p.requires_grad)


def _learn(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.requires_grad_(True)
        parameter.data = parameter.data.float()  # small steps would be lost in bfloat16
