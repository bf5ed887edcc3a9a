import pytest

from tests.tools.conftest import TOOLS
from vpeft import meta_prompt

DAM_VP = TOOLS.parent / "configs/vtab/dam_vp.yaml"


@pytest.fixture
def trained(monkeypatch):
    """What was asked of `meta_prompt.meta_train`, which does nothing here."""
    asked = []
    monkeypatch.setattr(meta_prompt, "meta_train", lambda *words: asked.append(words))
    return asked


def test_the_shipped_config_is_meta_trained_on_embedded_tasks_or_on_published_ones(tool, trained):
    ended = tool("meta_prompt", DAM_VP, "--tasks", "digits,easyvqa_shape", "-o", "m.safetensors", "--seed", "3")
    assert ended.code == 0, ended.err
    (config, tasks, file, settings, device) = trained.pop()
    assert (config.data.task, config.seed, config.method["size"]) == ("digits", 3, 4)
    assert (tasks, file, device) == (["digits", "easyvqa_shape"], "m.safetensors", None)
    assert settings == meta_prompt.Settings()
    words = ("--data.root", "DIR", "--tasks", "sun397,eurosat", "-o", "m.safetensors", "--epochs", "3", "--step", "1")
    assert tool("meta_prompt", DAM_VP, *words, "--device", "cpu").code == 0
    (config, tasks, _, settings, device) = trained.pop()
    assert (config.data.task, config.method["size"], tasks, device) == ("sun397", 30, ["sun397", "eurosat"], "cpu")
    assert settings == meta_prompt.Settings(epochs=3, step=1.0)


def test_wrong_words_are_one_sentence(tool, trained):
    def error(*words):
        ended = tool("meta_prompt", *words)
        assert (ended.code, ended.out) == (2, "")
        assert len(ended.err.splitlines()) == 1, ended.err
        return ended.err

    assert "the following arguments are required: -o" in error(DAM_VP, "--tasks", "digits")
    assert "invalid int value: 'many'" in error(DAM_VP, "--tasks", "a", "-o", "m.safetensors", "--epochs", "many")
    assert "there is no 'data.rot'" in error(DAM_VP, "--tasks", "a", "-o", "m.safetensors", "--data.rot", "x")
    assert "epochs is 0; give 1 or more" in error(DAM_VP, "--tasks", "a", "-o", "m.safetensors", "--epochs", "0")
    assert not trained
