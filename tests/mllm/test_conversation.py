"""Each answer of a conversation is what the model says to all of it so far."""

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from mllm.collate import collate
from mllm.conversation import Conversation
from mllm.data.batches import Writing
from mllm.data.images import Look, read
from mllm.generate import Decoding, generate
from mllm.sample import Held, Sample, Turn
from mllm.templates import find
from tests.mllm.languages import WORDS
from tests.mllm.models import CONNECTORS, NAMES, vlm

LOOK = Look((64, 64))


def picture(color):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(data, "png")
    return Held(color, data.getvalue())


def conversation(connector="mlp", **options):
    model = vlm(CONNECTORS[NAMES.index(connector)], {"name": "lora", "r": 2}).eval()
    head = model.language.lm_head.weight.data
    head[:3], head[len(WORDS) :] = 0, 0  # it says letters, and does not end
    words = model.about.tokenizer
    read_by = words if connector.endswith("instructed") else None
    writing = Writing(find("llava_v1"), words, model.connector.tokens, 120, read_by)
    return Conversation(model, writing, LOOK, Decoding(max_new_tokens=6, **options))


@pytest.mark.parametrize("connector", ["mlp", "gated_xattn", "qformer_instructed"])
def test_a_second_answer_follows_from_the_whole_conversation(connector):
    talk = conversation(connector)
    first = "".join(talk.ask("a b ?", [picture("red")])).strip()
    second = "".join(talk.ask("c <image> d ?", [picture("blue")])).strip()
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "user", "assistant"]
    assert talk.turns[1].text == first
    assert talk.turns[3].text == second
    assert len(talk.images) == 2
    sample = Sample("whole", tuple(talk.images), tuple(talk.turns[:3]))
    pixels = torch.stack([LOOK(read(source)) for source in talk.images])
    batch = collate([[talk.writing.prompt(sample)]], pixels, talk.model.connector.tokens, "left")
    if talk.writing.instruction_tokenizer is None:
        words = generate(talk.model, batch, talk.decoding, [talk.writing.template.stop(talk.writing.tokenizer)])[0]
        assert talk.model.about.tokenizer.decode(words, skip_special_tokens=True).strip() == second


def test_it_answers_without_any_image():
    assert "".join(conversation().ask("a b ?"))


def test_what_is_not_answered_is_no_part_of_the_conversation():
    talk = conversation()
    talk.model.language.lm_head.weight.data.zero_()
    assert list(talk.ask("a")) == []
    assert talk.turns == []


def test_a_question_that_is_refused_or_left_is_no_part_of_the_conversation():
    talk = conversation()
    with pytest.raises(ValueError, match="conversation"):
        list(talk.ask("<image> <image> ?", [picture("red")]))
    talk.writing = replace(talk.writing, max_length=20)
    with pytest.raises(ValueError, match="the prompt has"):
        list(talk.ask("a", [picture("red")]))
    talk.writing = replace(talk.writing, max_length=120)
    reader = talk.ask("a")
    next(reader)
    reader.close()
    assert talk.turns == []
    assert talk.images == []
    talk.turns = [Turn("user", "a"), Turn("assistant", "b")]
    assert "".join(talk.ask("c"))
