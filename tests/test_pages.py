"""Pages of the methods: made from the code, equal to what is committed, and true about where a method acts."""

import inspect
import re
import xml.etree.ElementTree as ElementTree

import pytest

from vpeft import docstring, methods, pages, where
from vpeft.methods import METHODS

BUILT = pages.build()


def told(name):
    return [str(line) for line in where.lines(where.record(name)[1])]


def test_the_committed_pages_are_what_the_code_generates():
    there = {path.relative_to(pages.ROOT) for path in (pages.ROOT / pages.FOLDER).iterdir()}
    stale = [
        str(path)
        for path, text in BUILT.items()
        if path not in there or (pages.ROOT / path).read_text(encoding="utf-8") != text
    ]
    assert not stale, "python tools/docs.py writes them anew"
    assert there == set(BUILT)


def test_writing_twice_changes_nothing_and_pages_of_lost_methods_go(tmp_path):
    assert len(pages.write(tmp_path)) == len(BUILT)
    gone = tmp_path / pages.FOLDER / "gone.md"
    gone.write_text("")
    assert pages.write(tmp_path) == [pages.FOLDER / "gone.md"]
    assert not gone.exists()


ACTS = {
    "linear": [],
    "adaptformer": ["what the MLP adds: changed, every block (Branch.edit)"],
    "lora": ["q, v: changed, every block (Affine.edit)"],
    "bitfit": [
        "patch embedding, last norm: learns in place (adopts bias)",
        "norm1, q, k, v, proj, norm2, fc1, fc2: learns in place, every block (adopts bias)",
    ],
    "partial": [
        "norm1, q, k, v, proj, norm2, fc1, fc2: learns in place, last block only (adopts weight, bias)",
        "last norm: learns in place (adopts weight, bias)",
    ],
    "ssf": [
        "patch embedding: changed (Affine.edit)",
        "norm1, norm2: changed, every block (Affine.replace)",
        "q, k, v, proj, fc1, fc2: changed, every block (Affine.edit)",
        "last norm: changed (Affine.replace)",
    ],
    "vp": ["pixels: changed (Backbone.edit_pixels)"],
    "dtl": [
        "tokens entering the block: read, every block (Block.before)",
        "tokens leaving the block: changed, upper half of the blocks (Block.after)",
        "last norm, pool: replaced (Backbone.read_with)",
    ],
    "prefix": ["attention: changed, every block (Block.add_keys)"],
    "ia3": ["k, v: changed, every block (Affine.edit)", "fc2: changed, every block (Affine.edit_input)"],
    "repadapter": [
        "input of the attention branch, input of the MLP branch: changed, every block (Branch.edit_input)",
    ],
    "lion": [
        "tokens entering the block: changed, first block only (Block.before)",
        "features: changed (Backbone.edit_features)",
    ],
}


@pytest.mark.parametrize("name", ACTS)
def test_what_a_method_touches_is_recorded(name):
    assert told(name) == ACTS[name]


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([None], ""),
        ([0], "first block only"),
        ([3], "last block only"),
        ([1, 2, 3], "every block but the first"),
        ([2, 3], "upper half of the blocks"),
        ([0, 2], "blocks 1, 3 of 4"),
    ],
)
def test_blocks_in_words(blocks, words):
    (line,) = where.lines([where.Touch("fc1", "Affine.edit", where.CHANGED, block) for block in blocks])
    assert line.blocks == words


@pytest.mark.parametrize("name", METHODS)
def test_the_figure_is_an_svg_that_names_and_colours_every_place(name):
    svg = ElementTree.fromstring(BUILT[pages.FOLDER / f"{name}.svg"])
    texts = ["".join(element.itertext()) for element in svg.iter() if element.tag.endswith("text")]
    for line in told(name):
        assert any(text.endswith(line) for text in texts)
    inside = float(svg.get("viewBox").split()[2])
    assert all(float(element.get("x", 0)) <= inside for element in svg.iter())
    assert max(map(len, texts)) < 150, "a line that leaves the picture"


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_in_the_table_with_its_meaning(name):
    options = list(inspect.signature(METHODS[name]).parameters)[1:]
    assert list(pages.read(METHODS[name]).options) == options, "Args: of the docstring names each option, in order"
    for option in options:
        assert re.search(rf"^\| `{option}` \| `.+` \| `.+` \| \S", BUILT[pages.FOLDER / f"{name}.md"], re.M)


def test_a_page_says_who_how_many_and_how():
    text = BUILT[pages.FOLDER / "adaptformer.md"]
    for said in (
        "# AdaptFormer\n",
        "[arXiv:2205.13535](https://arxiv.org/abs/2205.13535)",
        "![Where AdaptFormer attaches](adaptformer.svg)",
        "1,189,632",
        "| [ShoufaChen/AdaptFormer](https://github.com/ShoufaChen/AdaptFormer/tree/6967d67) | 6967d67 | ",
        "[configs/vtab/adaptformer_vtab8.yaml](../../configs/vtab/adaptformer_vtab8.yaml)",
        "python tools/train.py configs/vtab/adaptformer.yaml\n",
    ):
        assert said in text
    assert "tools/merge.py" not in text
    assert "tools/merge.py" in BUILT[pages.FOLDER / "ssf.md"]


@pytest.mark.parametrize("name", METHODS)
def test_links_and_licences(name):
    text = BUILT[pages.FOLDER / f"{name}.md"]
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        local = (pages.FOLDER / target).as_posix()
        assert (
            target.startswith("https://") or pages.FOLDER / target in BUILT or (pages.ROOT / local).resolve().exists()
        )
    assert all(licence == licence.strip() for _, _, licence in pages.repositories(METHODS[name]))


def test_prose_is_not_read_as_markup():
    escaped = docstring.escaped("a * b, [0, 1], x_i, _y and `c * d`, arXiv:2101.00190")
    link = "[arXiv:2101.00190](https://arxiv.org/abs/2101.00190)"
    assert escaped == rf"a \* b, \[0, 1\], x_i, \_y and `c * d`, {link}"


def test_the_index_lists_every_method():
    text = BUILT[pages.FOLDER / "index.md"]
    assert all(f"| [{name}]({name}.md) | " in text for name in METHODS)


def test_recording_leaves_the_random_numbers_alone():
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    where.record("lora")
    assert torch.equal(torch.rand(1), expected)
    assert isinstance(where.record("lora")[0], methods.Mergeable)
