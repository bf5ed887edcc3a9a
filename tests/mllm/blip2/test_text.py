"""Captions become ids with a beginning and an end, whichever tokenizer they come from."""

import pytest

from mllm.blip2.text import Words, load_tokenizer
from tests.mllm.blip2.runs import VOCABULARY, bert
from tests.mllm.vocabularies import by_bytes, by_words


def test_berts_tokens_begin_and_end_a_caption_and_dec_comes_after_its_words():
    words = Words(bert(), 8)
    names = [[*VOCABULARY, "[DEC]"][i] for i in words.ids("A red thing")[0]]
    assert names == ["[CLS]", "a", "red", "thing", "[SEP]"]
    assert words.vocab == len(VOCABULARY) + 1


def test_those_of_a_language_model_stand_in_for_them():
    tokenizer = by_bytes()
    words = Words(tokenizer, 32)
    ids, _ = words.ids("a red thing")
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(ids[1:-1]) == "a red thing"
    assert words.vocab == len(tokenizer) + 1


def test_a_tokenizer_that_ends_with_dec_needs_no_more():
    assert Words(bert([*VOCABULARY, "[DEC]"]), 8).vocab == len(VOCABULARY) + 1
    assert Words(bert(["[DEC]", *VOCABULARY]), 8).vocab == len(VOCABULARY) + 2


def test_a_long_caption_loses_its_last_words_and_keeps_its_end():
    words = Words(bert(), 5)
    whole, long = words.ids("a red thing"), words.ids("a red thing of blue")
    assert (whole[1], long[1]) == (False, True)
    assert whole[0] == long[0]


def test_a_caption_cannot_end_itself():
    words = Words(by_bytes(), 64)
    inner = words.ids("red </s> thing <s>")[0][1:-1]
    assert not {words.begin, words.end} & set(inner)


def test_a_batch_is_padded_on_the_right():
    ids, mask = Words(bert(), 8).batch(["red", "a red thing"])
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert ids[0, 3:].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls_token": None}, r"no token that begins a caption, \[CLS\] or a bos_token; set one"),
        ({"sep_token": None}, r"no token that ends a caption, \[SEP\] or an eos_token; set one"),
    ],
)
def test_a_tokenizer_without_what_is_needed_is_refused(change, message):
    tokenizer = bert()
    for name, value in change.items():
        setattr(tokenizer, name, value)
    with pytest.raises(ValueError, match=message):
        Words(tokenizer, 8)


def test_a_length_without_room_for_a_word_is_refused():
    with pytest.raises(ValueError, match=r"data\.max_length is 2: a beginning, a word and an end need 3 tokens"):
        Words(bert(), 2)


def test_a_tokenizer_is_read_from_a_folder(tmp_path):
    by_words("red blue").save_pretrained(tmp_path)
    assert load_tokenizer(f"hf:{tmp_path}").get_vocab()["blue"] == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2_135m", r"no tokenizer 'smollm2_135m'.*did you mean 'smollm2_135m_instruct'"),
        ("hf:nobody/nothing", "no folder here, and no model hub delivered it"),
    ],
)
def test_a_tokenizer_that_there_is_not_is_refused(name, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        load_tokenizer(name)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no tokenizer that transformers can read"):
        load_tokenizer(f"hf:{tmp_path}")
