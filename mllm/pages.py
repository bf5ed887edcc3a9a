"""A page of each connector: docs/connectors, from its docstrings, its signature, its test and where it attaches."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from mllm.connectors import CONNECTORS, GIVEN, InLayer, build
from mllm.decoder import Decoder
from mllm.language import text_shape
from mllm.shapes import TextShape, VisionShape
from vpeft.docstring import entries, escaped, joined, sections
from vpeft.pages import replace
from vpeft.yaml_file import read_yaml

ROOT = Path(__file__).parents[1]
FOLDER = Path("docs/connectors")
# CLIP ViT-L/14 at 336 px, and a LLaMA of 7B.
VISION, TEXT = VisionShape(1024, (24, 24), 1), TextShape(4096, 32, 32, 32, 128, 11008, 32000)
_GOLDEN = re.compile(r'"(mllm_\w+)"')
_PLACES = {
    "before": "tokens entering the layer (Layer.before)",
    "attend_also": "a second softmax in its attention (Layer.attend_also)",
    "reroute": "another path for some positions of {} (Layer.reroute)",
}


class _Layer:
    """A layer that notes what is attached to it."""

    def __init__(self, layer: Any, number: int, notes: dict[str, list[int]]) -> None:
        self._layer, self._number, self._notes = layer, number, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def before(self, _: Any) -> None:
        self._note(_PLACES["before"])

    def attend_also(self, _: Any) -> None:
        self._note(_PLACES["attend_also"])

    def reroute(self, role: str, _: Any) -> None:
        self._note(_PLACES["reroute"].format(role))

    def _note(self, place: str) -> None:
        self._notes.setdefault(place, []).append(self._number)


class _Decoder:
    """A small LLaMA of 32 layers that notes what is attached to it."""

    def __init__(self) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes: dict[str, Any] = {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": TEXT.layers,
            "vocab_size": 8,
        }
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
        self.shape, self._decoder, self.notes = text_shape(model), Decoder(model), dict[str, list[int]]()
        self.layers = [_Layer(layer, i, self.notes) for i, layer in enumerate(self._decoder.layers, start=1)]

    def check(self, text: TextShape) -> None:
        self._decoder.check(text)

    def rotate_by(self, _: Any) -> None:
        self.notes["the positions that queries and keys turn by (Decoder.rotate_by)"] = []


def attached(name: str) -> list[str]:
    """Where a connector acts in a language model of 32 layers, as it is by default."""
    decoder: Any = _Decoder()
    connector = build({"name": name}, VISION, decoder.shape)
    if not isinstance(connector, InLayer):
        return []
    connector.attach(decoder)
    return [f"{place}{f', {_spans(layers)}' if layers else ''}" for place, layers in decoder.notes.items()]


def _spans(layers: list[int]) -> str:
    if layers == list(range(1, TEXT.layers + 1)):
        return "every layer"
    step = layers[1] - layers[0] if len(layers) > 1 else 1
    assert layers == list(range(layers[0], layers[-1] + 1, step)), "evenly spread, or this sentence says too little"
    return f"layers {layers[0]} to {layers[-1]} of {TEXT.layers}" + (f", every {step}th" if step > 1 else "")


def page(name: str) -> str:
    """Markdown of one connector."""
    kind = CONNECTORS[name]
    head, equations, prose = _module(kind)
    body, said = sections(inspect.getdoc(kind) or "")
    count, *about = [joined(block) for block in body.split("\n\n") if block.strip()]
    with torch.device("meta"):
        made: Any = build({"name": name}, VISION, TEXT)
    parameters = sum(parameter.numel() for parameter in made.parameters())
    facts = [
        f"tokens of an image: {made.tokens:,}, of {VISION.tokens:,} vision tokens",
        f"shapes: features I x {VISION.tokens} x {VISION.dim} to I x {made.tokens} x {TEXT.dim}",
        f"parameters: {parameters:,}",
        f"several samples may share a row (`data.pack`): {'yes' if made.packable else 'no'}",
        f"reads the question: {'yes' if getattr(made, 'reads_text', False) else 'no'}",
    ]
    differs = [part[2] for paragraph in (count, *about) if (part := paragraph.partition("Differs: "))[1]]
    count, *about = [paragraph.partition("Differs: ")[0].strip() for paragraph in (count, *about)]
    where = attached(name)
    parts = [f"# `{name}`", f"{escaped(head)}. `connector: {{name: {name}}}`"]
    parts += ["```text\n" + equations + "\n```", *map(escaped, prose)]
    parts += ["## Where it attaches"]
    parts += ["Between vision tower and language model: its tokens stand where images are."] if made.tokens else []
    parts += ["\n".join(f"- {line}" for line in where)] if where else []
    parts += ["## Shapes and parameters", "By default, between a CLIP ViT-L/14 at 336 px and a LLaMA of 7B:"]
    parts += ["\n".join(f"- {fact}" for fact in facts), escaped(count), *(escaped(one) for one in about if one)]
    parts += ["## Known differences", *(escaped(one[:1].upper() + one[1:]) for one in differs)] if differs else []
    parts += ["## Options", _options(kind, dict(entries(said.get("Args", ""))))]
    if refused := [escaped(meaning) for _, meaning in entries(said.get("Raises", ""))]:
        parts.append(f"Refused: {' '.join(refused)}")
    parts += ["## Compared with", _tests(name), "## Configs", _configs(name)]
    parts.append(f"<!-- Generated by tools/docs.py from mllm/connectors/{Path(inspect.getfile(kind)).name}. -->")
    return "\n\n".join(parts) + "\n"


def _module(kind: type[nn.Module]) -> tuple[str, str, list[str]]:
    """Title, equations and prose of a connector's module."""
    head, *blocks = (getattr(inspect.getmodule(kind), "__doc__", None) or "").strip().split("\n\n")
    # An equation that nothing follows has lost its indent to the formatter.
    equations = [block for block in blocks if block.startswith("    ")] or blocks[:1]
    text = "\n\n".join(block.strip("\n") for block in equations)
    return joined(head).removesuffix("."), textwrap.dedent(text), [joined(b) for b in blocks if b not in equations]


def _options(kind: type[nn.Module], meanings: dict[str, str]) -> str:
    found = [one for one in inspect.signature(kind).parameters.values() if one.name not in GIVEN]
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for option in found:
        kinds = option.annotation if isinstance(option.annotation, str) else inspect.formatannotation(option.annotation)
        meaning = escaped(meanings.get(option.name, ""))
        cells = [f"`{option.name}`", f"`{kinds}`", f"`{json.dumps(option.default)}`", meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) if found else "None."


def _tests(name: str) -> str:
    """Its test, and the official code that the numbers in it come from."""
    folder, kind = Path("tests/mllm/connectors"), CONNECTORS[name].__name__
    file = folder / f"test_{name}.py"
    if not (ROOT / file).is_file():  # the map of LLaVA is held with its MLP
        there = [one for one in sorted((ROOT / folder).glob("test_*.py")) if f"import {kind}\n" in one.read_text()]
        file = there[0].relative_to(ROOT)
    text = (ROOT / file).read_text()
    lines = [f"[{file}](../../{file})"]
    for golden in dict.fromkeys(_GOLDEN.findall(text)):
        with safe_open(ROOT / "tests/golden" / f"{golden}.safetensors", "pt") as opened:
            about = opened.metadata()
        lines.append(
            f"- `tests/golden/{golden}.safetensors`: outputs and gradients of {about['repository']} at "
            f"{about['commit'][:7]} ({about['licence']})"
        )
    return "\n".join(lines)


def _configs(name: str) -> str:
    folder = ROOT / "configs/mllm"
    found = [file for file in sorted(folder.glob("*.yaml")) if read_yaml(file)["connector"]["name"] == name]
    return "\n".join(f"- [{file.name}](../../configs/mllm/{file.name})" for file in found) or "None."


def index() -> str:
    """The page that lists all pages."""
    rows = ["| `name` | connector | what it is |", "|---|---|---|"]
    for name, kind in CONNECTORS.items():
        body, _ = sections(inspect.getdoc(kind) or "")
        what = escaped(joined(body.split("\n\n")[0]).partition(";")[0]).replace("|", "\\|")
        rows.append(f"| [{name}]({name}.md) | {escaped(_module(kind)[0])} | {what} |")
    head = "# Connectors\n\nGenerated by `python tools/docs.py` from the docstrings in `mllm/connectors/`."
    return "\n\n".join([head, "\n".join(rows)]) + "\n"


def write(root: Path = ROOT) -> list[Path]:
    """Write what has changed, and remove pages of connectors that are gone.

    Returns:
        The files that were written or removed.
    """
    return replace(root, FOLDER, built())


def built() -> dict[Path, str]:
    """Every page, by its path from the repository's root."""
    return {FOLDER / "index.md": index()} | {FOLDER / f"{name}.md": page(name) for name in CONNECTORS}
