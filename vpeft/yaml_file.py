"""Config files as plain data: safe tags only, each key once, and every error with its file and line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import yaml

from vpeft.nearest import did_you_mean
from vpeft.schema import ConfigError

_MOST = 100_000


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

    def construct_whole_number(self, node: yaml.ScalarNode) -> int:
        value = self.construct_yaml_int(node)
        if value.bit_length() >= sys.float_info.max_exp:  # Python could not print it, nor make a float of it
            raise yaml.MarkedYAMLError(problem="a number of too many digits", problem_mark=node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$|[-+]?[0-9]+[eE][-+]?[0-9]+$|[-+]?\.inf$|\.nan$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """Plain data from YAML text.

    Raises:
        yaml.YAMLError: The text is not YAML, asks for anything but plain data, or is larger than it looks.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _sizes(node, {})
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.MarkedYAMLError(problem="nested too deep") from error
    except Exception as error:  # what a value of YAML's own tags is made with: int, float, a date, base64
        raise yaml.MarkedYAMLError(problem=f"a value that is not of its kind ({str(error)[:80]})") from error
    finally:
        loader.dispose()


def _sizes(node: yaml.Node, known: dict[int, int | None]) -> int:
    """How many values a node holds where every alias (`*name`) is written out."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.MarkedYAMLError(problem="an alias that holds itself", problem_mark=node.start_mark)
        return size
    known[id(node)] = None
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(one,) for one in _listed(node)]
    size = 1 + sum(_sizes(one, known) for pair in pairs for one in pair)
    if size > _MOST:
        raise yaml.MarkedYAMLError(problem=f"aliases of over {_MOST:,} values", problem_mark=node.start_mark)
    known[id(node)] = size
    return size


def _listed(node: yaml.Node) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []


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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
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
    names = sorted(found.name for found in folder.glob("*.yaml"))
    if not names:
        return f"{folder.absolute()} holds no .yaml file, so give the path of one, such as configs/vtab/vpt.yaml"
    return did_you_mean(name, names, "" if folder == Path() else f"{folder}/")


def plain(value: Any) -> Any:
    """A value as YAML and JSON know it: tuples as lists, paths as text."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
