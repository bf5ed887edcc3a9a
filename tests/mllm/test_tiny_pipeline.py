"""The whole way, from drawn images to a connector that answers about new ones, on models that are trained here."""

from pathlib import Path

import pytest

from mllm import gate, tiny
from mllm.gate import VARIANTS, Found, try_variant
from mllm.schema import MLLMConfig
from vpeft.config import parse

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    said = []
    tiny.make(folder, say=said.append)
    return folder, said


def _config(folder, output):
    words = [str(ROOT / "configs/mllm/tiny.yaml"), "--vision.backbone", f"hf:{folder / 'vision'}"]
    words += ["--language.name", f"hf:{folder / 'language'}", "--output", str(output), "--data.count", "2000"]
    config = parse([*words, "--evaluation.samples", "250"])
    assert isinstance(config, MLLMConfig)
    return config


def test_both_models_know_what_they_are_taught(models):
    shares = [float(word.rstrip("%")) for line in models[1] for word in line.split() if word.endswith("%")]
    assert len(shares) == 3
    assert min(shares) > 98


# One with a token a patch, one with queries, one inside the layers, one beside a trained language model.
@pytest.mark.parametrize("name", ["mlp", "qformer", "gated_xattn", "mlp+lora"])
def test_a_connector_answers_about_new_images_and_not_without_them(models, tmp_path, name):
    found = try_variant(_config(models[0], tmp_path), VARIANTS[name])
    assert found.score >= gate.LEAST
    assert abs(found.shuffled - gate.CHANCE) <= gate.NEAR
    assert abs(found.blank - gate.CHANCE) <= gate.NEAR
    assert found.held_out > 0.5  # combinations it has not seen; chance is a quarter
    assert found.passes
    assert found.diversity is None or found.diversity > 0.05


def test_a_connector_that_is_not_trained_does_not_pass(models, tmp_path):
    config = _config(models[0], tmp_path)
    config.train.steps, config.optim.lr = 1, 1e-9
    found = try_variant(config, VARIANTS["mlp"])
    assert found.score < 0.5
    assert not found.passes


@pytest.mark.parametrize(
    ("found", "passes"),
    [
        (Found(1, 0.9, 0.7, 0.25, 0.2, 0.5, 1.0), True),
        (Found(1, 0.84, 0.7, 0.25, 0.25, 0.5, 1.0), False),
        (Found(1, 0.9, 0.7, 0.4, 0.25, 0.5, 1.0), False),  # answers right about an image that it was not shown
        (Found(1, 0.9, 0.7, 0.25, 0.1, 0.5, 1.0), False),
    ],
)
def test_passing_takes_right_answers_and_controls_at_chance(found, passes):
    assert found.passes is passes


def test_every_connector_is_tried():
    from mllm.connectors import CONNECTORS

    assert set(CONNECTORS) == {variant["connector"]["name"] for variant in VARIANTS.values()}
