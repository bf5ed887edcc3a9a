"""Config files as plain data: safe tags only, each key once, and every error with its file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from vpeft.nearest import did_you_mean
from vpeft.schema import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number, dates are text and a key given twice is a mistake."""

    # A copy, because the resolvers of SafeLoader are shared by every program that reads YAML.
    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith((":float", ":timestamp"))]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key != "<<":
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"'{key}' is given twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """Plain data from YAML text.

    Raises:
        yaml.YAMLError: The text is not YAML, or asks for anything but plain data.
    """
    return yaml.load(text, Loader=_Loader)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a config file.

    Raises:
        ConfigError: There is no such file, or its content is no YAML mapping; says which line.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(_missing(path))
    try:
        tree = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "nested too deep"
        raise ConfigError(f"{path}: not a valid YAML config{line}: {problem}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, not {_kind(tree)}")
    return tree or {}


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the text '{value}'" if isinstance(value, str) else f"'{value}'"


def _missing(path: Path) -> str:
    if path.is_dir():
        return f"{path}: is a folder, not a config file; {_beside(path.name, path)}"
    if not path.parent.is_dir():
        return f"{path}: there is no folder {path.parent}"
    return f"{path}: there is no such file; {_beside(path.name, path.parent)}"


def _beside(name: str, folder: Path) -> str:
    prefix = "" if folder == Path() else f"{folder}/"
    return did_you_mean(name, sorted(found.name for found in folder.glob("*.yaml")), prefix)


def plain(value: Any) -> Any:
    """A value as YAML and JSON know it: tuples as lists, paths as text."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
