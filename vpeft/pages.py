"""A page of each method, from its docstrings, its signature, its configs and what it touches.

Name (Authors, Venue Year, arXiv:xxxx.xxxxx).      module docstring: title and citation,

    an equation                                    equations, indented by 4,

Sentences. Shapes: ...                             prose;

What it is; formula: count on ViT-B/16.            class docstring: parameters, official code,
Differs: ...   Args: ...   Raises: ...             differences, options, refusals
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vpeft import figure, methods, where
from vpeft.docstring import entries, escaped, joined, linked, sections
from vpeft.yaml_file import read_yaml

ROOT = Path(__file__).parents[1]
FOLDER = Path("docs/methods")
_REPOSITORY = re.compile(r"([\w.-]+/[\w.-]+) @ ([0-9a-f]{7,40})")
_LICENCE = re.compile(r",? ?[(\[]?(MIT|Apache-2\.0|BSD-\d-Clause|CC-BY[\w.-]*|no licence[^,.;)\]]*)")
_WORDS: list[tuple[Any, str]] = [
    (
        methods.Mergeable | methods.MergingInputs,
        "Merges into the backbone's weights: `python tools/merge.py ADAPTER -o merged.safetensors`.",
    ),
    (methods.Selective, "Trains parameters of the backbone where they are; an adapter holds their new values."),
    (methods.Widening, "Hands the head more than the backbone's features."),
    (methods.Preparing, "Looks at the training images before an epoch."),
    (methods.Penalised, "Adds a term to the training loss."),
    (methods.Stepping, "Acts between the gradients and the optimiser, or after it."),
    (methods.Packing, "Its adapter is smaller on disk than its tensors."),
    (methods.Cacheable, "Makes the same of an image in every epoch below the head, so that this can be kept."),
]


@dataclass(frozen=True)
class Doc:
    """What the docstrings of a method say.

    Args:
        title: Name of the method.
        citation: Authors, venue, year and arXiv id; empty where there is no paper.
        equations: As they stand.
        prose: Paragraphs of the module.
        count: First paragraph of the class: what it is, formula and count.
        about: Further paragraphs of the class: official code, choices.
        differs: Known differences.
        options: Meaning of each argument.
        raises: What is refused.
    """

    title: str
    citation: str
    equations: str
    prose: list[str]
    count: str
    about: list[str]
    differs: list[str]
    options: dict[str, str]
    raises: list[str]


def read(method: type[nn.Module]) -> Doc:
    """The docstrings of a method's module and class."""
    module = inspect.getdoc(inspect.getmodule(method)) or ""
    first, _, rest = module.partition("\n")
    named = re.fullmatch(r"(.+?) \((.*)\)\.?", first)
    title, citation = named.groups() if named and re.search(r"\d{4}", named[2]) else (first.rstrip("."), "")
    title, _, said = title.partition(": ")
    blocks = [block for block in rest.split("\n\n") if block.strip()]
    equations = [block for block in blocks if block.strip("\n").startswith("    ")]
    prose = [_sentence(said)] if said else []
    prose += [part for block in blocks if block not in equations for part in _paragraphs(block)]
    body, parts = sections(inspect.getdoc(method) or "")
    count, *about = [joined(block) for block in body.split("\n\n") if block.strip()]
    return Doc(
        title,
        citation,
        textwrap.dedent("\n\n".join(block.strip("\n") for block in equations)),
        prose,
        count,
        [part for part in about if not part.startswith("Differs: ")],
        [_sentence(part.removeprefix("Differs: ")) for part in about if part.startswith("Differs: ")],
        dict(entries(parts.get("Args", ""))),
        [_sentence(meaning) for _, meaning in entries(parts.get("Raises", ""))],
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].removesuffix('.')}."


def _paragraphs(block: str) -> Iterator[str]:
    """The block in one line, the legend of shapes apart."""
    text, mark, shapes = joined(block).partition("Shapes: ")
    yield from filter(None, [text.strip(), f"Shapes: {shapes}" if mark else ""])


def repositories(method: type[nn.Module]) -> list[tuple[str, str, str]]:
    """Repository, commit and licence of every official code that a method names."""
    text = _text(method)
    found: dict[tuple[str, str], str] = {}
    for match in _REPOSITORY.finditer(text):
        said = _LICENCE.match(text, match.end())
        found[match[1], match[2]] = found.get((match[1], match[2])) or (
            said[1] if said else _licences().get(match[1], "")
        )
    return [(repository, commit, licence) for (repository, commit), licence in found.items()]


def _text(method: type[nn.Module]) -> str:
    return joined(f"{inspect.getdoc(inspect.getmodule(method))} {inspect.getdoc(method)}")


def _licences() -> dict[str, str]:
    """Licences by repository, as some method states them."""
    found = {}
    for method in methods.METHODS.values():
        text = _text(method)
        for match in _REPOSITORY.finditer(text):
            if said := _LICENCE.match(text, match.end()):
                found.setdefault(match[1], said[1])
    return found


def configs(name: str) -> list[Path]:
    """Configs of a method, relative to the repository."""
    found = []
    for file in [
        file
        for folder in ("vtab", "ade20k", "multitask")
        for file in sorted((ROOT / "configs" / folder).glob("*.yaml"))
    ]:
        specs = read_yaml(file)["method"]
        if name in [spec["name"] for spec in (specs if isinstance(specs, list) else [specs])]:
            found.append(file.relative_to(ROOT))
    return found


def page(name: str) -> tuple[str, str]:
    """Markdown and SVG of one method."""
    kind = methods.METHODS[name]
    doc, (method, touches) = read(kind), where.record(name)
    parts = [f"# {doc.title}", f"{linked(doc.citation)}. `method: {{name: {name}}}`" if doc.citation else f"`{name}`"]
    parts.append(f"![Where {doc.title} attaches]({name}.svg)")
    found = where.lines(touches)
    parts.append("\n".join(f"- {escaped(str(line))}" for line in found) or "Nothing in the backbone is touched.")
    if doc.equations:
        parts += ["## Equations", f"```text\n{doc.equations}\n```"]
    parts += [escaped(paragraph) for paragraph in doc.prose]
    parts += ["## Parameters", escaped(doc.count)]
    parts += [escaped(paragraph) for paragraph in doc.about]
    parts += ["## Official code", _repository_table(kind)]
    if doc.differs:
        parts += ["## Known differences", *map(escaped, doc.differs)]
    parts += ["## Options", _option_table(kind, doc)]
    if doc.raises:
        parts.append("Refused: " + " ".join(map(escaped, doc.raises)))
    if said := [words for protocol, words in _WORDS if isinstance(method, protocol)]:
        parts += ["## What it can do", "\n".join(f"- {words}" for words in said)]
    parts += ["## Configs", _config_list(name)]
    parts += ["## Backbones", "The table of methods and backbones is in the [README](../../README.md)."]
    parts.append(f"<!-- Generated by tools/docs.py from vpeft/methods/{Path(inspect.getfile(kind)).name}. -->")
    return "\n\n".join(parts) + "\n", figure.draw(doc.title, found)


def _repository_table(method: type[nn.Module]) -> str:
    found = repositories(method)
    if not found:
        return "None is named."
    rows = ["| repository | commit | licence |", "|---|---|---|"]
    for repository, commit, licence in found:
        link = f"[{repository}](https://github.com/{repository}/tree/{commit})"
        rows.append(f"| {link} | {commit} | {licence or 'see there'} |")
    return "\n".join(rows)


def _option_table(method: type[nn.Module], doc: Doc) -> str:
    options = list(inspect.signature(method).parameters.values())[1:]  # the first is the backbone
    if not options:
        return "None."
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for option in options:
        kind = str(option.annotation).replace("|", "\\|")
        default = json.dumps(list(option.default) if isinstance(option.default, tuple) else option.default)
        meaning = escaped(doc.options.get(option.name, "")).replace("|", "\\|")
        rows.append(f"| `{option.name}` | `{kind}` | `{default}` | {meaning} |")
    return "\n".join(rows)


def _config_list(name: str) -> str:
    lines = []
    for file in configs(name):
        header = [line[1:].strip() for line in (ROOT / file).read_text().splitlines() if line.startswith("#")]
        commands = [line for line in header if line.startswith("python ")]
        about = joined(" ".join(header[: header.index("")] if "" in header else header[:1]))
        lines.append(f"[{file}](../../{file}): {escaped(about)}\n\n```sh\n{chr(10).join(commands)}\n```")
    return "\n\n".join(lines) or "None."


def index() -> str:
    """The page that lists all pages."""
    rows = ["| `name` | method | what it is | official code |", "|---|---|---|---|"]
    for name, method in methods.METHODS.items():
        doc = read(method)
        cited = f"{doc.title} ({linked(doc.citation)})" if doc.citation else doc.title
        what = escaped(doc.count.partition(";")[0]).replace("|", "\\|")
        first = [f"[{repository}](https://github.com/{repository})" for repository, _, _ in repositories(method)]
        rows.append(f"| [{name}]({name}.md) | {cited} | {what} | {', '.join(first)} |")
    head = "# Methods\n\nGenerated by `python tools/docs.py` from the docstrings in `vpeft/methods/`."
    return "\n\n".join([head, "\n".join(rows)]) + "\n"


def build() -> dict[Path, str]:
    """Every generated file, by its path from the repository's root."""
    files = {FOLDER / "index.md": index()}
    for name in methods.METHODS:
        files[FOLDER / f"{name}.md"], files[FOLDER / f"{name}.svg"] = page(name)
    return files


def write(root: Path = ROOT) -> list[Path]:
    """Write what has changed, and remove pages of methods that are gone.

    Returns:
        The files that were written or removed.
    """
    return replace(root, FOLDER, build())


def replace(root: Path, folder: Path, files: dict[Path, str]) -> list[Path]:
    """Make a folder below `root` hold these files and no others; the ones that were written or removed."""
    changed = []
    (root / folder).mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text:
            (root / path).write_text(text, encoding="utf-8")
            changed.append(path)
    for file in (root / folder).iterdir():
        if file.relative_to(root) not in files:
            file.unlink()
            changed.append(file.relative_to(root))
    return changed
