"""Class names as classifier rows: their mean over templates, their cache, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from tests.dense.clips import small_clip, words
from vpeft.dense.san_text import VILD, TextClassifier


class Counting:
    """The tokenizer, counting the sentences it has seen."""

    def __init__(self):
        self.sentences = []

    def __call__(self, sentences):
        self.sentences += sentences
        return words(sentences)


@pytest.fixture
def text():
    return TextClassifier(small_clip(), Counting(), 24, templates=("a {}", "one {} there"))


def test_rows_are_means_of_normalised_sentences_and_then_the_background(text):
    rows = text(["cat", "dog"])
    clip = small_clip()
    per = [F.normalize(clip.encode_text(words([f"a {name}", f"one {name} there"])), dim=-1) for name in ("cat", "dog")]
    expected = torch.stack([F.normalize(one.mean(0), dim=-1) for one in per])
    torch.testing.assert_close(rows[:2], expected)
    torch.testing.assert_close(rows[2], F.normalize(text.background[0], dim=-1))


def test_the_templates_are_vilds_fourteen():
    assert len(VILD) == len(set(VILD)) == 14
    assert all(template.count("{}") == 1 for template in VILD)


def test_names_are_encoded_once(text):
    text(["cat", "dog"])
    assert len(text.tokenize.sentences) == 4
    again = text(["dog", "cat"])
    assert len(text.tokenize.sentences) == 4
    torch.testing.assert_close(again[:2].flip(0), text(["cat", "dog"])[:2])


def test_a_new_class_is_encoded_and_the_others_kept(text):
    text(["cat"])
    text(["cat", "dog"])
    assert text.tokenize.sentences == ["a cat", "one cat there", "a dog", "one dog there"]


def test_another_template_makes_them_anew(text):
    before = text(["cat"])
    text.templates = ("some {}",)
    assert not torch.allclose(text(["cat"])[0], before[0])


def test_another_weight_of_the_tower_makes_them_anew(text):
    before = text(["cat"])
    (tower,) = text._tower
    tower.load_state_dict(small_clip(seed=1).state_dict())
    assert not torch.allclose(text(["cat"])[0], before[0])


def test_training_of_the_position_table_makes_none_anew(text):
    text(["cat"])
    (tower,) = text._tower
    with torch.no_grad():
        tower.visual.positional_embedding.add_(1.0)
    text(["cat"])
    assert len(text.tokenize.sentences) == 2


def test_the_background_learns_and_the_tower_does_not(text):
    text(["cat"]).square().mul(torch.arange(24.0)).sum().backward()
    assert text.background.grad.abs().sum() > 0
    assert [name for name, _ in text.named_parameters()] == ["background"]


def test_commas_stay_in_the_sentence(text):
    text(["person, individual"])
    assert text.tokenize.sentences[0] == "a person, individual"


@pytest.mark.parametrize(
    ("classes", "said"),
    [([], "empty; give"), (["cat", " "], "empty name"), (["cat", "dog", "Cat "], "'Cat' is named twice")],
)
def test_lists_of_classes_that_are_refused(text, classes, said):
    with pytest.raises(ValueError, match=said):
        text(classes)


@pytest.mark.parametrize(("templates", "said"), [((), "templates is empty"), (("a photo",), r"without \{\}")])
def test_templates_that_are_refused(templates, said):
    with pytest.raises(ValueError, match=said):
        TextClassifier(small_clip(), words, 24, templates)
