"""CIDEr-D equals the program that papers use, and counts what it says."""

import math

import pytest

from mllm.cider import cider_d, words

CAPTIONS = [
    "a cat sits on the red mat",
    "a dog runs",
    "two birds fly over the sea over the sea",
    "",
    "a man",
]
REFERENCES = [
    ["a cat sits on a mat", "the cat is on the red mat", "a red mat with a cat"],
    ["a dog runs in the park", "the brown dog runs"],
    ["two birds fly over the sea"],
    ["a street at night", "an empty street"],
    ["a man in a hat reads a paper", "a man", "a man reads the paper"],
]
# What CiderScorer(n=4, sigma=6.0) of pycocoevalcap 1.2 gives for them.
OFFICIAL = [4.2620189, 3.6058833, 5.94012349, 0.0, 2.90104547]


def test_it_equals_the_program_that_papers_use():
    assert cider_d(CAPTIONS, REFERENCES) == pytest.approx(OFFICIAL, abs=1e-7)


def test_one_word_captions_are_computed_by_hand():
    # Two images; each word is in the references of one, so it weighs log 2. One word: only n = 1 counts, of four.
    same, other = cider_d(["cat", "bird"], [["cat"], ["dog"]])
    assert same == pytest.approx(10 / 4)
    assert other == 0
    # Half of the words are the reference's: log(2)^2 / (sqrt(2) log(2) log(2)), one pair of words apart.
    longer, _ = cider_d(["cat mat", "dog"], [["cat"], ["dog"]])
    assert longer == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-1 / 72))


def test_words_are_lower_case_without_punctuation_and_clitics_apart():
    assert words("A dog's ball ISN'T red-hot, they'll say!") == (
        ["a", "dog", "'s", "ball", "is", "n't", "red-hot", "they", "'ll", "say"]
    )


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="Score two samples at least"):
        cider_d(["a cat"], [["a cat"]])
