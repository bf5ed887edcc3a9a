"""A conversation at a terminal: what its lines do, and how it ends."""

import io
from typing import Any

import pytest
from PIL import Image

from mllm.assistant import Assistant
from mllm.chat import Chat, readable
from mllm.conversation import Conversation
from mllm.generate import Decoding
from tests.mllm.adapters import saved
from vpeft.data.images import UnreadableImage


@pytest.fixture(scope="module")
def assistant(tmp_path_factory):
    return Assistant(saved(tmp_path_factory.mktemp("adapter")), device="cpu")


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "red ball.png", tmp_path / "blue.png"]
    for path in paths:
        Image.new("RGB", (20, 30), path.stem.partition(" ")[0]).save(path)
    return paths


def chat(assistant, images=()) -> Any:
    return Chat(assistant, Decoding(max_new_tokens=5), images, io.StringIO(), io.StringIO())


def lines(*said):
    """Ctrl-C where an exception is given, Ctrl-D at the end."""
    left = list(said)

    def following():
        if not left:
            raise EOFError
        line = left.pop(0)
        if isinstance(line, str):
            return line
        raise line

    return following


def answer(assistant, *questions, images=()):
    """The last answer of a conversation that shows the images first."""
    talk, said = Conversation(assistant.model, assistant.writing, assistant.look, Decoding(max_new_tokens=5)), ""
    for i, question in enumerate(questions):
        said = "".join(talk.ask(question, images if i == 0 else ()))
    return said.lstrip()


def test_questions_are_answered_in_turn(assistant, images):
    talk = chat(assistant, images[:1])
    talk.converse(lines("a b ?", "  ", "c d ?"))
    first, second = talk.out.getvalue().rstrip("\n").split("\n")[:2]
    assert first == answer(assistant, "a b ?", images=images[:1])
    assert second == answer(assistant, "a b ?", "c d ?", images=images[:1])
    assert second != answer(assistant, "c d ?")
    assert talk.err.getvalue() == ""


def test_an_image_is_shown_with_the_next_question_and_forgotten_by_a_reset(assistant, images):
    talk = chat(assistant)
    talk.take("a ?")
    talk.take(f"/image {images[0]}")
    talk.take("b ?")
    assert talk.talk.images == [images[0]]
    assert talk.shown == []
    assert talk.talk.turns[2].text == "<image>\nb ?"
    talk.take(f"/image {images[1]}")
    talk.take("/reset")
    assert (talk.talk.turns, talk.talk.images, talk.shown) == ([], [], [])
    talk.out = io.StringIO()
    talk.take("a ?")
    assert talk.out.getvalue() == answer(assistant, "a ?") + "\n"


def test_the_conversation_ends_where_it_is_told_to(assistant):
    for ending in ("/quit", KeyboardInterrupt()):
        talk = chat(assistant)
        talk.converse(lines("a ?", ending, "b ?"))
        assert len(talk.talk.turns) == 2


def test_ctrl_c_stops_an_answer_and_the_conversation_goes_on(assistant, monkeypatch):
    talk = chat(assistant)
    ask = talk.talk.ask

    def interrupted(question, shown):
        if question == "a ?":
            yield "half"
            raise KeyboardInterrupt
        yield from ask(question, shown)

    monkeypatch.setattr(talk.talk, "ask", interrupted)
    talk.converse(lines("a ?", "b ?"))
    assert talk.out.getvalue() == f"half\n{answer(assistant, 'b ?')}\n\n"
    assert talk.err.getvalue() == "stopped; the question is forgotten\n"
    assert talk.talk.turns[0].text == "b ?"


def test_an_answer_begins_without_space(assistant, monkeypatch):
    talk = chat(assistant)
    monkeypatch.setattr(talk.talk, "ask", lambda question, shown: iter([" ", "\n a", " b ", "c"]))
    talk.take("d ?")
    assert talk.out.getvalue() == "a b c\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image", "error: /image needs the path of an image: /image PATH"),
        ("/image no.png", "error: no.png could not be read"),
        ("/rest", "error: There is no /rest; did you mean '/reset'? /image PATH shows"),
        ("a <image> b", "error: sample 'conversation' has 1 times <image> and 0 images"),
        ("a " * 200, "the prompt has 200 tokens, and 123 are allowed"),
    ],
)
def test_a_wrong_line_is_a_sentence_and_the_conversation_goes_on(assistant, line, said):
    talk = chat(assistant)
    assert talk.take(line)
    assert said in talk.err.getvalue()
    assert talk.out.getvalue() == ""
    assert talk.take("a ?")
    assert talk.out.getvalue()


def test_a_question_that_is_refused_keeps_the_image_for_the_next(assistant, images):
    talk = chat(assistant, images[:1])
    talk.take("a <image> <image> b")
    assert "has 2 times <image> and 1 image;" in talk.err.getvalue()
    talk.take("a ?")
    assert talk.talk.images == images[:1]


def test_an_answer_leaves_half_of_the_context_to_what_was_said(assistant):
    talk = Chat(assistant, Decoding(max_new_tokens=1000), (), io.StringIO(), io.StringIO())
    assert talk.talk.decoding.max_new_tokens == talk.talk.writing.max_length == 64


def test_an_empty_question_without_an_image_is_refused(assistant, images):
    with pytest.raises(ValueError, match="There is no question; write one"):
        chat(assistant).ask(" ")


def test_images_are_read_before_anything_is_loaded(images, tmp_path):
    assert readable([str(image) for image in images]) == images
    images[1].write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"blue\.png"):
        readable([str(image) for image in images])
