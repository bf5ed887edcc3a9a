"""Packs whose heads were pretrained: each member maps its own labels, and trains its own prompt."""

import pytest

from tests.heads.test_frozen_heads import BODIES
from tests.heads.test_text import tiny  # noqa: F401  (a fixture)
from tests.packed.runs import assert_same_run, prepare, rows, three
from vpeft.packed import train_together
from vpeft.run import train


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("packed"))


@pytest.mark.parametrize("kind", BODIES)
def test_members_with_a_frozen_head_are_as_runs_of_their_own(kind, root, tmp_path, tiny):  # noqa: F811
    def make(output):
        configs = three(root, output, {"name": "ilm_vp", "inner": 24}, epochs=2)
        for config in configs:
            backbone, config.head = BODIES[kind]
            if kind.endswith("text"):  # no weights of it are stored: one random backbone for all
                config.backbone, config.pretrained, config.seed = backbone, "none", 0
            config.optim.lr *= 40  # a prompt is far from the logits
        return configs

    apart = [train(config) for config in make(tmp_path / "apart")]
    together = rows(train_together(make(tmp_path / "together")))
    for ours, theirs in zip(together, apart, strict=True):
        assert theirs["parameters"]["head"] == 0
        assert_same_run(ours, theirs)
