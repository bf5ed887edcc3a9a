"""The site: `sphinx-build -W -c docs . build/docs` from the repository's root, whose Markdown files are its pages."""

import re

project = "vpeft"
author = "the authors of vpeft"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
# Folders that are not walked through.
exclude_patterns = [".*", "build", "runs", "tests", "configs", "data_prep", "tools", "vpeft", "mllm", "docs/site"]
html_theme = "furo"
html_title = "vpeft"
html_extra_path = ["site"]  # index.html leads to the page of contents
html_copy_source = False
myst_heading_anchors = 4  # as a code host makes them
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True


def as_rst(app, what, name, obj, options, lines):
    """Docstrings are written as Markdown: code in single backticks, stars that are stars, indented equations."""
    blocks = "\n".join(lines).split("\n\n")
    lines[:] = "\n\n".join(f"::\n\n{block}" if block.startswith("    ") else _prose(block) for block in blocks).split(
        "\n"
    )


def _prose(block):
    code = re.compile(r"`+[^`]+`+")
    plain = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in code.split(block)]
    spans = [f"``{span.strip('`')}``" for span in code.findall(block)] + [""]
    return "".join(part + span for part, span in zip(plain, spans, strict=True))


def setup(app):
    app.connect("autodoc-process-docstring", as_rst, priority=100)  # before napoleon reads the sections
