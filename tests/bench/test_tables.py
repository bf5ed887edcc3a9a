"""Tables, the drawing, and their place in a page, from a file with known numbers."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from vpeft.bench import pages, picture, tables
from vpeft.results.labels import Box

RUN = {
    "date": "2026-11-30T01:02:03+00:00",
    "git": None,
    "versions": {"python": "3.11", "torch": "2", "timm": "1"},
    "machine": {"processor": "EPYC", "family": "26 2", "bf16": [], "cores": 2, "gpu": None, "load": 0.1},
}


def held(memory, operations, **other):
    counts = {"operations": operations, "bytes": [10, 20, 0], "blocks_backward": 1.0, "weights_trained": 0.0}
    sizes = {"parameters": 1000, "trained_bytes": 4000, "file_bytes": 6_000_000, "head_bytes": 1_000_000}
    return {
        "memory": memory * 2**20,
        "peaks": [memory * 2**20],
        "tensors": memory * 2**19,
        **counts,
        **sizes,
        "run": 0,
        **other,
    }


def parts(*seconds):
    return {"forward": [one / 2 for one in seconds], "backward": [one / 2 for one in seconds], "optimiser": [0.0] * 3}


def data():
    return {
        "kind": "methods",
        "setting": {"backbone": "vit", "batch": 8, "image_size": None, "precision": "fp32", "device": "cpu"}
        | {"threads": 2},
        "runs": [RUN],
        "memory": {
            "full": held(1000, [100, 200, 0], weights_trained=1.0),
            "lora-qkv": held(600, [100, 110, 0]),
            "peft-lora-qkv": held(800, [100, 110, 0]),
        },
        "time": [
            {"run": 0, "seconds": {"full": parts(9, 9, 9), "lora-qkv": parts(9, 9, 9)}},
            {
                "run": 0,
                "seconds": {
                    "full": parts(4, 4, 8),
                    "lora-qkv": parts(2, 4, 4),
                    "peft-lora-qkv": parts(4, 4, 4),
                },
            },
        ],
        "inference": {"lora-qkv": {"seconds": {"plain": [1.0], "adapted": [1.5], "merged": [1.0]}, "differs": 1e-6}},
        "compile": {"full": {"compiling": 60.0, "breaks": 0, "seconds": {"eager": [2.0], "compiled": [1.0]}}},
        "profile": {
            "full": {
                "kinds": {
                    "mm": {"calls": 2, "operations": 6e9, "bytes": 1e9, "seconds": [3.0, 1.0, 2.0]},
                    "add": {"calls": 5, "operations": 0, "bytes": 4e9, "seconds": [1.0, 1.0, 1.0]},
                    "mul": {"calls": 1, "operations": 0, "bytes": 1e6, "seconds": [0.1, 0.1, 0.1]},
                }
            }
        },
        "failed": {"compile": {"lora-qkv": "RuntimeError: a | b"}},
    }


def row(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_steps_are_of_the_newest_session_and_over_its_own_full():
    text = tables.steps(data())
    assert row(text, "lora-qkv") == [
        *("lora-qkv", "1,000", "5.00", "2.00", "2.00", "0.00", "4.00", "2.0"),
        *("0.50 (0.50 to 0.75)", "0.70", "600", "0.60", "0.60"),
    ]
    assert row(text, "full")[8] == "1.00"


def test_a_profile_shows_the_operations_that_take_nearly_all_of_a_step():
    assert tables.profiled(data()).splitlines()[2:] == [
        "| full | `mm` | 2 | 2.00 | 0.65 | 6 | 3 | 1.0 | 0.5 |",
        "| full | `add` | 5 | 1.00 | 0.32 | 0 | 0 | 4.0 | 4.0 |",
    ]


def test_a_peak_is_the_median_of_its_processes():
    found = data()
    found["memory"]["full"] |= {"peaks": [900 * 2**20, 1000 * 2**20, 1200 * 2**20]}
    assert row(tables.steps(found), "full")[10] == "1,000 (950 to 1,100)"


def test_pairs_compare_with_peft_in_the_same_rounds():
    assert row(tables.pairs(data()), "lora-qkv / peft-lora-qkv")[1:] == [
        "1,000",
        "1,000",
        "1.00 (0.75 to 1.00)",
        "0.75",
        "0.75",
    ]


def test_limits_have_the_farthest_first():
    lines = tables.limits(data()).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["peft-lora-qkv", "lora-qkv"]
    assert row(tables.limits(data()), "lora-qkv")[1:] == ["0.67", "0.70", "1.00", "0.50 (0.50 to 0.75)", "0.75", "0.71"]


def test_inference_compilation_and_failures_are_told():
    made = tables.parts(data())
    assert row(made["inference"], "lora-qkv")[1:] == ["1000", "1.50", "1.00", "1e-06"]
    assert row(made["compile"], "full")[1:] == ["60", "0", "2.00", "1.00", "0.50"]
    assert "| lora-qkv | compile | RuntimeError: a \\| b |" in made["failed"]
    assert "2026-11-30 on EPYC (26 2), 2 cores, load 0.1" in made["about"]


def test_a_file_with_memory_alone_has_its_table_and_no_times():
    some = {key: value for key, value in data().items() if key in ("kind", "setting", "runs", "memory")}
    made = tables.parts(some)
    assert set(made) == {"about", "steps", "peft"}
    assert row(made["steps"], "lora-qkv")[-1] == "0.60"
    with pytest.raises(ValueError, match="no case with both time and memory"):
        picture.figure(some)


def test_the_picture_names_every_case_and_no_name_covers_another(monkeypatch):
    placed = []
    place = picture.place

    def watched(*arguments):
        placed.extend(place(*arguments))
        return placed

    monkeypatch.setattr(picture, "place", watched)
    many = data()
    for number in range(30):
        many["memory"][f"case-{number}"] = held(600 + number, [100, 110, 0])
        many["time"][1]["seconds"][f"case-{number}"] = parts(2 + number / 50, 4, 4)
    figure = picture.figure(many)
    tree = ElementTree.fromstring(figure.file())
    words = [one.text for one in tree.iter("{http://www.w3.org/2000/svg}text")]
    assert {"full", "lora-qkv", "peft-lora-qkv"} <= set(words)
    boxes = [label.box for label in placed if label]
    assert len(boxes) > 25
    assert not any(a.meets(b) for at, a in enumerate(boxes) for b in boxes[:at])
    assert all(box.within(Box(0, 0, *figure.size)) for box in boxes)


def test_a_page_is_written_from_its_files(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps(data()))
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- bench found.json peft -->\nold\n<!-- /bench -->\nBetween.\n"
                    "<!-- bench found.json picture -->\n<!-- /bench -->\nAfter.\n")  # fmt: skip
    assert set(pages.refresh(page)) == {page, tmp_path / "found.svg"}
    text = page.read_text()
    assert "old" not in text
    assert tables.pairs(data()) in text
    assert "![Step time against peak memory of every case, both over full fine-tuning](found.svg)" in text
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert (tmp_path / "found.svg").read_text().startswith("<svg")
    pages.refresh(page)
    assert page.read_text() == text


def test_a_page_that_asks_for_what_is_not_there_is_refused(tmp_path):
    (tmp_path / "found.json").write_text(json.dumps(data()))
    page = tmp_path / "page.md"
    page.write_text("<!-- bench found.json growth -->\n<!-- /bench -->\n")
    with pytest.raises(ValueError, match="has no table 'growth'; it has about, steps"):
        pages.refresh(page)


def test_the_documentation_is_what_its_files_say():
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    files = pages.written(page)
    assert page.read_text() == files.pop(page), f"python tools/bench.py docs {page} writes it anew"
    assert all(path.exists() for path in files)
