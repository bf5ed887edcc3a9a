"""Any config file and command line gives a configuration or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.guard import REFUSED, outcome
from tests.fuzz.mutations import VALUES, altered, damaged
from vpeft import config
from vpeft.setting import schema

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    "classification": "vtab/vpt.yaml",
    "segmentation": "ade20k/linear.yaml",
    "multitask": "multitask/mtlora.yaml",
    "openvocab": "openvocab/san_vit_b16.yaml",
    "mllm": "mllm/blip2_stage2.yaml",
    "blip2": "mllm/blip2_stage1.yaml",
}
KEYS = ["method.rank", "method.name", "connector.name", "head.x", "embedded", "..", ".", "", "protocol"]
ODD = ["!!python/object/apply:os.system [x]", "{class_path: os.system}", "*a", "&a [*a]", "[", "9" * 5000]
ODD += ["0x" + "f" * 9999, "1:1:1", "=", "<<", "{? [1]: 2}", "!!binary x", "!!set {a}", "[" * 3000, "null"]


def tried(kind: str, folder: Path, examples: int) -> None:
    whole = (CONFIGS / FILES[kind]).read_bytes()
    tree, file = yaml.safe_load(whole), folder / "c.yaml"
    file.write_bytes(whole)
    config.parse([str(file)])  # imports what it needs
    texts = altered(tree).map(lambda one: yaml.safe_dump(one, allow_unicode=True).encode("utf-8", "surrogatepass"))
    keys = st.sampled_from([*KEYS, *schema(config.KINDS[kind])]) | st.text(max_size=6)
    pairs = st.tuples(keys, VALUES.map(json.dumps) | st.text(max_size=12) | st.sampled_from(ODD))

    def parsed(words: list[str]) -> Any:
        try:
            found = outcome(lambda: config.parse([str(file), *words]), folder)
        except SystemExit as leaving:  # --help
            if leaving.code:
                raise
            return REFUSED
        if found is not REFUSED:  # what is read comes back from its own file
            file.write_text(config.to_yaml(found), "utf-8")
            assert config.parse([str(file)]) == found
        return found

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(texts | altered(tree).map(lambda one: json.dumps(one).encode()) | damaged(whole))
    def files(data: bytes) -> None:
        file.write_bytes(data)
        parsed([])

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(st.lists(pairs, min_size=1, max_size=3))
    def words(given: list[tuple[str, str]]) -> None:
        file.write_bytes(whole)
        parsed([word for key, value in given for word in (f"--{key}", value)])

    files()
    words()


@pytest.mark.parametrize("kind", FILES)
def test_a_config_is_read_or_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    tried(kind, tmp_path, 15)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_hundreds_of_configs_are_read_or_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    tried(kind, tmp_path, 500)
