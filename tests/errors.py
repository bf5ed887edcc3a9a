"""The list of what the project tells a user who did something wrong: every error it can raise, and who saw it.

    python -m pytest -p tests.errors --errors errors.md

writes each place in the packages and tools that raises an error or calls `parser.error`, with its text, the messages as
the tests saw them and one such test. Places without a test are marked. Errors inside processes that a test starts are
not seen.
"""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("vpeft", "mllm", "tools", "data_prep")
SHOWN = 3  # messages of one place: more of them only differ in numbers

Site = tuple[str, int]  # file, line

seen: dict[Site, dict[str, str]] = defaultdict(dict)  # message -> test


def note(error: Any, file: str, line: int) -> Any:
    """Remembers an error that is about to be raised, or a sentence for the command line, and hands it on."""
    told = error if isinstance(error, str | BaseException) else ""  # `raise StopIteration`: a class has no message
    test = os.environ.get("PYTEST_CURRENT_TEST", "collection").rpartition(" ")[0]
    seen[file, line].setdefault(str(told), test)
    return error


def told(node: ast.AST) -> ast.expr | None:
    """What a statement or call tells the user: the error of a `raise`, the sentence of `parser.error`."""
    if isinstance(node, ast.Raise):
        return node.exc  # a bare `raise` hands on what another place said
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "error" and node.args:
        return node.args[0] if ast.unparse(node.func.value).endswith("parser") else None
    return None


def sites(file: str, source: str) -> Iterator[tuple[Site, str]]:
    """Every place of a file that tells an error, with the error's source."""
    for node in ast.walk(ast.parse(source)):
        if (error := told(node)) is not None:
            yield (file, error.lineno), ast.unparse(error)


def noting(source: bytes | str, file: str) -> ast.Module:
    """The module's syntax tree in which every such place calls `note` first."""
    tree = ast.parse(source)
    for node in list(ast.walk(tree)):
        if (error := told(node)) is not None:
            place = [ast.Constant(file), ast.Constant(error.lineno)]
            call = ast.Call(ast.Name("_note_error", ast.Load()), [error, *place], [])
            if isinstance(node, ast.Raise):
                node.exc = call
            else:
                assert isinstance(node, ast.Call)
                node.args[0] = call
    return ast.fix_missing_locations(tree)


def ours(file: Path) -> bool:
    return file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in FOLDERS


def watch() -> None:
    """From now on the project's modules are compiled, and so that they note their errors."""
    plain, kept = builtins.compile, importlib.machinery.SourceFileLoader.get_code

    def compiled(source: Any, filename: Any, *args: Any, **options: Any) -> Any:
        if isinstance(source, str | bytes) and isinstance(filename, str | Path) and ours(Path(filename)):
            source = noting(source, str(Path(filename).relative_to(ROOT)))
        return plain(source, filename, *args, **options)

    def code(self: Any, name: str) -> Any:
        path = self.get_filename(name)
        # The cache of compiled modules belongs to other runs: what is ours neither comes from it nor goes there.
        return compiled(self.get_data(path), path, "exec", dont_inherit=True) if ours(Path(path)) else kept(self, name)

    builtins._note_error = note  # type: ignore[attr-defined]
    builtins.compile = compiled
    importlib.machinery.SourceFileLoader.get_code = code  # type: ignore[method-assign]


def listing(places: dict[Site, str], messages: dict[Site, dict[str, str]]) -> str:
    """The list as Markdown, a file a heading."""
    lines = [f"{len(places)} places, {sum(site in messages for site in places)} seen by a test.", ""]
    file = ""
    for site, source in sorted(places.items()):
        if site[0] != file:
            file = site[0]
            lines += [f"## {file}", ""]
        lines.append(f"- {site[1]}: `{source}`" + ("" if site in messages else " **no test**"))
        shown = list(messages.get(site, {}).items())[:SHOWN]
        lines += [f"  - {' '.join(message.split())} ({test})" for message, test in shown]
    return "\n".join(lines) + "\n"


def places() -> dict[Site, str]:
    """All places of the project."""
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    return {
        site: source
        for file in files
        for site, source in sites(str(file.relative_to(ROOT)), file.read_text(encoding="utf-8"))
    }


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--errors", metavar="FILE", type=Path, help="write the list of the project's errors to FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    watch()


def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended: what its tests saw joins the list."""
    for file, line, messages in getattr(node, "workeroutput", {}).get("errors", []):
        seen[file, line] |= messages


def pytest_sessionfinish(session: pytest.Session) -> None:
    config: Any = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["errors"] = [[*site, messages] for site, messages in seen.items()]
    elif file := config.getoption("errors"):
        file.write_text(listing(places(), seen), encoding="utf-8")
