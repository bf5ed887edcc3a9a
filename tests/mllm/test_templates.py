from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mllm.sample import Turn
from mllm.templates import FILE, Template, find, opening
from tests.mllm.vocabularies import CHATML, LLAMA2, by_bytes, by_pieces, by_words, with_stripping_end
from vpeft.yaml_file import read_yaml

ASKED = (Turn("user", "<image>\nWhy?"), Turn("assistant", "red"), Turn("user", "How?"), Turn("assistant", "blue"))
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


def written(name: str, turns: tuple[Turn, ...] = ASKED, system: str | None = None, **tokenizer: str) -> str:
    """Segments in a row: images as #, what is trained in brackets, tokens in angles."""
    words = by_bytes(**tokenizer)
    shown = []
    for part in find(name, system).segments(turns, words):
        token = words.convert_ids_to_tokens(part.token) if part.token is not None else ""
        text = "#" if part.image else token.replace("Ċ", "\n") or part.text
        shown.append(f"[{text}]" if part.trained else text)
    return "".join(shown)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("llava_v1", f"<s>{SYSTEM} USER: #\nWhy? ASSISTANT:[ red][</s>]USER: How? ASSISTANT:[ blue][</s>]"),
        ("blip2", "#<s>Question: Why? Answer:[ red][\n]Question: How? Answer:[ blue][\n]"),
        ("flamingo", "<s>#Output:[red][</s>]Output:[blue][</s>]"),
        ("flamingo_vqa", "<s>#Question:Why? Short answer:[red][</s>]Question:How? Short answer:[blue][</s>]"),
        ("bare", "<s>#Why?[ red][</s>]How?[ blue][</s>]"),
    ],
)
def test_a_conversation_is_written_as_published(name: str, text: str) -> None:
    assert written(name) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain", "<s>#[red][\n]"),
        ("blip2_pretrain", "#<s>[red][\n]"),
        ("blip2_caption", "#<s>a photo of[ red][\n]"),
    ],
)
def test_a_caption_template_throws_the_question_away(name: str, text: str) -> None:
    assert written(name, ASKED[:2]) == text


@pytest.mark.parametrize("name", ["plain", "blip2_pretrain", "blip2_caption"])
def test_a_template_for_one_caption_refuses_more(name: str) -> None:
    with pytest.raises(ValueError, match=f"template {name} writes 1 question and answer, and there are 2 questions"):
        written(name)


def test_llava_moves_one_image_of_a_turn_to_its_front_and_leaves_several() -> None:
    one = (Turn("user", "Why?\n<image>"), Turn("assistant", "red"))
    assert written("llava_v1", one, system="") == "<s>USER: #\nWhy? ASSISTANT:[ red][</s>]"
    alone = (Turn("user", "<image>"), Turn("assistant", "red"))
    assert written("llava_v1", alone, system="") == "<s>USER: # ASSISTANT:[ red][</s>]"
    two = (Turn("user", "Is <image> like <image>?"), Turn("assistant", "red"))
    assert written("llava_v1", two, system="") == "<s>USER: Is # like #? ASSISTANT:[ red][</s>]"


def test_a_system_text_of_the_conversation_comes_before_that_of_the_settings_and_of_the_template() -> None:
    own = (Turn("system", "Own."), *ASKED[:2])
    assert written("llava_v1", own, system="Given.").startswith("<s>Own. USER")
    assert written("llava_v1", ASKED, system="Given.").startswith("<s>Given. USER")


def test_braces_in_a_text_stay() -> None:
    turns = (Turn("user", "<image>{} {0}"), Turn("assistant", "{x}"))
    assert written("flamingo_vqa", turns) == "<s>#Question:{} {0} Short answer:[{x}][</s>]"


def test_the_chat_template_of_the_tokenizer_is_followed() -> None:
    start = "<|im_start|>user\n#\nWhy?<|im_end|>\n<|im_start|>assistant\n[red][<|im_end|>]\n"
    assert written("chat", chat=CHATML) == (
        f"{start}<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n[blue][<|im_end|>]"
    )
    assert written("chat", ASKED[:3], chat=CHATML).endswith("How?<|im_end|>\n<|im_start|>assistant\n")
    system = (Turn("system", "Own."), *ASKED[:2])
    assert written("chat", system, chat=CHATML).startswith("<|im_start|>system\nOwn.<|im_end|>\n<|im_start|>user\n#")
    assert written("chat", system="Given.", chat=CHATML).startswith("<|im_start|>system\nGiven.<|im_end|>")


def test_a_space_before_an_answer_belongs_to_it() -> None:
    assert written("chat", ASKED, chat=LLAMA2) == (
        "<s>[INST] #\nWhy? [/INST][ red ][</s>]<s>[INST] How? [/INST][ blue ][</s>]"
    )
    spaced = CHATML.replace("'\n' + message['content']", "': ' + message['content']")
    assert written("chat", ASKED[:2], chat=spaced).endswith("<|im_start|>assistant:[ red][<|im_end|>]")
    assert written("chat", ASKED[:1], chat=spaced).endswith("<|im_start|>assistant:")


def test_a_special_token_takes_the_white_space_that_its_tokenizer_lets_it_take() -> None:
    chat = CHATML.replace("<|im_end|>", "<|end|>")
    parts = find("chat").segments(ASKED, with_stripping_end(chat))
    texts = "user\n|\nWhy?|assistant\n|red|user\nHow?|assistant\n|blue"
    assert "|".join(part.text for part in parts if part.text) == texts


def test_the_token_that_closes_an_answer_is_known() -> None:
    tokenizer = by_bytes(CHATML)
    stops = {name: find(name).stop(tokenizer) for name in ("llava_v1", "plain", "chat")}
    assert tokenizer.convert_ids_to_tokens(list(stops.values())) == ["</s>", "Ċ", "<|im_end|>"]
    pieces = by_pieces()
    assert pieces.decode([find("plain").stop(pieces)]) == "\n"


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        (None, "has no chat template"),
        ("{{ messages[0]['content'] }}", "does not write every text once and in order"),
        (CHATML.replace("<|im_end|>", ""), "ends an answer with .*, which has no special token"),
        (LLAMA2, "refuses turns of system, user, assistant, user, assistant: no system text"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_refused(chat: str | None, reason: str) -> None:
    turns = (Turn("system", "Own."), *ASKED)
    with pytest.raises(ValueError, match=reason):
        find("chat").segments(turns, by_pieces(chat))


def test_a_tokenizer_without_the_end_of_a_template_is_refused() -> None:
    words = by_words("red blue", eos=False)
    with pytest.raises(ValueError, match="llava_v1 ends an answer with the end-of-sequence token, which the tokenizer"):
        find("llava_v1").stop(words)
    with pytest.raises(ValueError, match=r"plain ends an answer with '\\n', which the tokenizer"):
        find("plain").stop(words)


def test_a_sequence_begins_with_what_the_tokenizer_begins_with() -> None:
    assert by_bytes().convert_ids_to_tokens(list(opening(by_bytes()))) == ["<s>"]
    assert opening(by_bytes(bos=False)) == ()  # it has a BOS token and does not use it


def test_a_file_of_ones_own_is_a_template(tmp_path: Path) -> None:
    entry = read_yaml(FILE)["bare"] | {"cue": " so"}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"mine": entry}))
    assert written(str(file)) == "<s>#Why? so[ red][</s>]How? so[ blue][</s>]"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"usr": "x"}, "the template 'mine' has no 'usr'; did you mean 'user'"),
        ({"bos": "yes"}, "needs 'bos'"),
        ({"image_position": "back"}, "is one of before_bos, after_bos, before_turn, turn, inline, not 'back'"),
        ({"answer": "none"}, "answer and begin of 'mine' must have {}"),
    ],
)
def test_a_wrong_template_is_refused(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"mine": read_yaml(FILE)["bare"] | change}))
    with pytest.raises(ValueError, match=reason):
        find(str(file))


def test_a_file_with_several_templates_or_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(FILE.read_text())
    with pytest.raises(ValueError, match="has one template, and this one has 9"):
        find(str(tmp_path / "all.yaml"))
    (tmp_path / "list.yaml").write_text("mine: [1]")
    with pytest.raises(ValueError, match="the template 'mine' is not a mapping"):
        find(str(tmp_path / "list.yaml"))


def test_an_unknown_template_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.template 'lava_v1' is not known; did you mean 'llava_v1'\?"):
        find("lava_v1")
    with pytest.raises(ValueError, match="there is no such file"):
        find("missing.yaml")


def test_every_shipped_template_says_where_it_comes_from() -> None:
    for name in read_yaml(FILE):
        template = find(name)
        assert isinstance(template, Template)
        assert template.source


def test_a_tokenizer_with_a_separator_ends_with_it_where_it_has_no_end() -> None:
    words = by_words("red blue", eos=False)
    words.sep_token = "</s>"
    assert find("bare").stop(words) == words.convert_tokens_to_ids("</s>")
