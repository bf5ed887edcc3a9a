"""A trained model as a folder of transformers: LLaVA's container for linear maps and MLPs, BLIP-2's for Q-Formers.

What was trained in tower and language model is written into their weights first, in float32. The folder also holds
tokenizer and processor, with the token `<image>` added, whose places the container fills. Before anything is written,
the container answers a prompt about a drawn image as the model here does, to 1e-4.

Shapes: L positions, V words.
"""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mllm import qformer_names
from mllm.assistant import Assistant
from mllm.card import rendered
from mllm.collate import collate
from mllm.connectors.linear import Linear
from mllm.connectors.mlp import MLP
from mllm.connectors.qformer import QFormerConnector
from mllm.export_vision import blip2_tower, llava_tower
from mllm.merge import merged
from mllm.sample import MARKER, Held, Sample, Turn
from mllm.templates import CHAT, opening
from mllm.vlm import VLM
from vpeft.tasks.learning import normalise

TOLERANCE = 1e-4
_INSIDE = "it acts inside the layers of the language model, where no container of transformers has a place for it"
REFUSED = {
    "avg_pool": "LLaVA's container hands on every token that it reads and averages none",
    "pixel_shuffle": "LLaVA's container does not shuffle; Idefics3's does, and reads other towers in tiles",
    "c_abstractor": "no model of transformers has its convolutions",
    "d_abstractor": "no model of transformers has its deformable attention between tower and language model",
    "resampler": "Flamingo's is in no container; those of Idefics have other norms and activations",
    "gated_xattn": _INSIDE,
    "zero_init_prompt": _INSIDE,
    "visual_expert": _INSIDE,
}
_ELSE = "Use the adapter as it is, with tools/chat.py or tools/evaluate.py."


def export(
    path: Path | str, output: Path | str, weights: str | None = None, language: str | None = None
) -> tuple[list[Path], str]:
    """Write an adapter as a folder of transformers.

    Args:
        path: The adapter.
        output: The folder, which is made.
        weights: File of the vision tower's weights, where they are no longer where training found them.
        language: The language model, `hf:FOLDER`, where it is no longer where training found it.

    Returns:
        What was written, and how to load and ask it.

    Raises:
        ValueError: The adapter cannot be loaded, no container holds its connector, its tower or what was trained in
            the language model, or the folder is there already; says why.
        RuntimeError: The container does not compute what the model does.
        OSError: The folder could not be written.
    """
    output = Path(output)
    if output.exists():
        raise ValueError(f"{output} is there already; give the name of a new folder, or remove it.")
    assistant = Assistant(path, weights, language, "cpu")
    name = assistant.manifest["connector"]["name"]
    if name in REFUSED:
        raise ValueError(f"{path}: a model with the connector {name} cannot be exported: {REFUSED[name]}. {_ELSE}")
    model = assistant.model.float()
    model.mixed = False
    try:
        container = to_container(model)
    except ValueError as error:
        raise ValueError(f"{path} cannot be exported: {error} {_ELSE}") from error
    tokenizer = copy.deepcopy(model.about.tokenizer)
    if assistant.manifest["preparation"]["template"] != CHAT:
        tokenizer.chat_template = None  # training wrote conversations otherwise
    container = _with_image_token(container, tokenizer)
    ends = sorted({*model.about.ends, *assistant.ends})
    container.generation_config.eos_token_id = ends
    container.generation_config.pad_token_id = ends[0]
    differs = difference(assistant, container)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        built = Path(temporary, "new")
        container.save_pretrained(built)
        processor(assistant, container, tokenizer).save_pretrained(built)
        for file in built.glob("*.safetensors"):  # which safetensors leaves to its owner alone
            file.chmod((built / "config.json").stat().st_mode)
        os.replace(built, output)
    how = (
        f"load it with {type(container).__name__}.from_pretrained('{output}') and AutoProcessor.from_pretrained(...); "
        f"its logits differ by at most {differs:.1e}. It was trained with prompts like\n{_example(assistant)!r}"
    )
    return [output], how


def to_container(model: VLM) -> Any:
    """The model as a container of transformers, without a token for images yet.

    Raises:
        ValueError: No container has a place for something of it; says why.
    """
    connector = model.connector
    if isinstance(connector, Linear | MLP):
        return _llava(model, connector)
    assert isinstance(connector, QFormerConnector)  # the others are in REFUSED
    return _blip2(model, connector)


def difference(assistant: Assistant, container: Any) -> float:
    """The largest difference of a logit between the container and the model, at a prompt about a drawn image.

    Raises:
        RuntimeError: It is more than rounding.
    """
    model, writing, look = assistant.model, assistant.writing, assistant.look
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (1, 3, *look.size), dtype=torch.uint8, generator=generator)
    encoded = writing.prompt(_sample())
    batch = collate([[encoded]], image, writing.tokens_per_image, "left")
    ids = batch["input_ids"].masked_fill(batch["image_mask"], container.config.image_token_id)
    with torch.no_grad():
        ours = model(batch)
        pixels = normalise(image, model.mean, model.std)
        theirs = container(input_ids=ids, pixel_values=pixels, attention_mask=batch["attention_mask"]).logits.float()
    apart = float((ours - theirs[..., : ours.shape[-1]]).abs().amax())
    if apart > TOLERANCE * max(1.0, float(ours.abs().amax())):
        raise RuntimeError(
            f"The logits of {type(container).__name__} differ from the model's by {apart:.1e}, more than rounding, so "
            "nothing is written: this version of transformers computes something else. Install the one in "
            "constraints.txt."
        )
    return apart


def processor(assistant: Assistant, container: Any, tokenizer: Any) -> Any:
    """The processor that goes with a container: images and texts as its forward takes them."""
    import transformers as hf

    model, look = assistant.model, assistant.look
    side = look.size[0]
    mean, std = model.vision.backbone.normalization
    common = {
        "resample": {"bilinear": 2, "bicubic": 3}[look.interpolation],
        "image_mean": list(mean),
        "image_std": list(std),
        "crop_size": {"height": side, "width": side},
    }
    if look.aspect == "squash":
        images: Any = hf.CLIPImageProcessor(size={"height": side, "width": side}, do_center_crop=False, **common)
    elif look.aspect == "crop":
        images = hf.CLIPImageProcessor(size={"shortest_edge": side}, **common)
    else:
        images = hf.LlavaImageProcessor(size={"shortest_edge": side}, do_pad=True, **common)
    if isinstance(model.connector, QFormerConnector):
        return hf.Blip2Processor(images, tokenizer, num_query_tokens=model.connector.tokens)
    neck: Any = model.vision.neck
    strategy = container.config.vision_feature_select_strategy
    return hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=side // neck.grid[0],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1 if strategy == "default" else neck.prefix,
        image_token=MARKER,
    )


def _llava(model: VLM, connector: Linear | MLP) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    maps = [module for module in connector.modules() if isinstance(module, nn.Linear)]
    if len(maps) > 2:
        raise ValueError(f"LLaVA's container has an MLP of 2 maps, and this one has {len(maps)}.")
    tower = llava_tower(model.vision)
    plain = merged(model.about).model
    head = plain.get_output_embeddings()
    if not model.plain_head or head.bias is not None:
        raise ValueError(
            f"LLaVA's container makes logits with one matrix, and {type(plain).__name__} scales, bounds or shifts them."
        )
    if plain.config.tie_word_embeddings and not hasattr(plain.base_model, "embed_tokens"):
        raise ValueError(
            f"LLaVA's container ties the words of its output to `embed_tokens` of the language model, and those of "
            f"{type(plain).__name__} are elsewhere."
        )
    config = LlavaConfig(
        vision_config=tower.model.config,
        text_config=plain.config,
        vision_feature_layer=tower.layer,
        vision_feature_select_strategy=tower.strategy,
        projector_hidden_act="gelu" if len(maps) == 2 else "linear",
        image_seq_length=connector.tokens,
        tie_word_embeddings=plain.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        container: Any = LlavaForConditionalGeneration(config)
    dim = maps[-1].out_features
    projector = container.model.multi_modal_projector.to_empty(device="cpu")
    projector.linear_1.load_state_dict(maps[0].state_dict())
    if len(maps) == 2:
        projector.linear_2.load_state_dict(maps[1].state_dict())
    else:
        projector.linear_2.load_state_dict({"weight": torch.eye(dim), "bias": torch.zeros(dim)})
    container.model.vision_tower, container.model.language_model = tower.model, plain.base_model
    container.lm_head = head
    return _finished(container, plain)


def _blip2(model: VLM, connector: QFormerConnector) -> Any:
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerModel

    own = connector.qformer
    if own.words is not None:
        raise ValueError(
            "BLIP-2's Q-Former reads no instruction, and this one does (connector.instructed), as InstructBLIP's."
        )
    tower = blip2_tower(model.vision, connector.norm)
    plain = merged(model.about).model
    layer: Any = own.layers[0]
    every = next((i for i, one in enumerate(own.layers) if i and one.cross is not None), len(own.layers))
    config = Blip2Config(
        vision_config=tower.config,
        qformer_config={
            "hidden_size": own.queries.shape[-1],
            "num_hidden_layers": len(own.layers),
            "num_attention_heads": layer.attention.heads,
            "intermediate_size": layer.query_mlp.fc1.out_features,
            "encoder_hidden_size": tower.config.hidden_size,
            "cross_attention_frequency": every,
        },
        text_config=plain.config,
        num_query_tokens=connector.tokens,
    )
    with torch.device("meta"):
        container: Any = Blip2ForConditionalGeneration(config)
    container.vision_model, container.language_model = tower, plain
    container.query_tokens = nn.Parameter(own.queries.detach().clone())
    state = {qformer_names.transformers(name): tensor for name, tensor in own.state_dict().items()}
    del state["query_tokens"]
    qformer_config: Any = config.qformer_config
    container.qformer = Blip2QFormerModel(qformer_config)
    container.qformer.load_state_dict(state)
    container.language_projection.to_empty(device="cpu").load_state_dict(connector.proj.state_dict())
    return _finished(container, plain)


def _finished(container: Any, plain: Any) -> Any:
    container.generation_config = copy.deepcopy(plain.generation_config)
    return container.eval().requires_grad_(False)


def _with_image_token(container: Any, tokenizer: Any) -> Any:
    """The container with a token for images, which the tokenizer gets too."""
    tokenizer.add_special_tokens({"additional_special_tokens": [MARKER]}, replace_extra_special_tokens=False)
    token = tokenizer.convert_tokens_to_ids(MARKER)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if token >= container.get_input_embeddings().num_embeddings:
        container.resize_token_embeddings(token + 1, mean_resizing=False)
    container.config.image_token_id = token
    return container


def _sample() -> Sample:
    return Sample("export", (Held("drawn", b""),), (Turn("user", f"{MARKER}\nWhat is this?"),))


def _example(assistant: Assistant) -> str:
    text = rendered(_sample(), assistant.writing)
    tokenizer = assistant.writing.tokenizer
    start = "".join(str(tokenizer.convert_ids_to_tokens(token)) for token in opening(tokenizer))
    return text.removeprefix(start)  # which the tokenizer writes itself
