import pytest

from tests.tools.conftest import TOOLS
from vpeft import search
from vpeft.search_settings import SearchConfig

NOAH = TOOLS.parent / "configs/vtab/noah.yaml"


@pytest.fixture
def searched(monkeypatch):
    """What was asked of `search.search`, which does nothing here."""
    asked = []
    monkeypatch.setattr(search, "search", lambda *words: asked.append(words))
    return asked


def test_the_shipped_config_searches_the_embedded_task_in_minutes_and_the_published_one_as_published(tool, searched):
    assert tool("search", NOAH, "--search.budget", "150000", "--search.depths", "[6, 12]", "--seed", "3").code == 0
    (config, settings) = searched.pop()
    assert (settings.budget, settings.depths, config.seed) == (150_000, [6, 12], 3)
    assert (settings.epochs, config.data.task, config.train.epochs) == (12, "digits", 6)
    assert tool("search", NOAH, "--data.root", "DIR").code == 0
    (config, settings) = searched.pop()
    assert settings == SearchConfig()
    assert (config.backbone, config.data.task) == ("vit_base_patch16_224.orig_in21k", "cifar100")


def test_the_shipped_config_says_where_its_search_writes_the_subnet(tool, searched):
    tool("search", NOAH)
    (config, settings) = searched.pop()
    folder = config.output / search._supernet(config, settings).name
    assert f"python tools/train.py {folder}/subnet.yaml\n" in NOAH.read_text()


def test_wrong_words_are_one_sentence_and_search_nothing(tool, searched, tmp_path):
    def error(*words, file=NOAH):
        ended = tool("search", file, *words)
        assert (ended.code, ended.out) == (2, "")
        assert len(ended.err.splitlines()) == 1, ended.err
        return ended.err

    assert "command line: there is no 'search.budgt'; did you mean 'search.budget'?" in error("--search.budgt", "1")
    assert "search.budget must be a whole number, not 'much'" in error("--search.budget", "much")
    assert "search.lora must be a list of whole numbers, not 5" in error("--search.lora", "5")
    assert "search.lr must be a number, not null" in error("--search.lr", "null")
    assert "the value of --search.lora is not valid YAML: [1" in error("--search.lora", "[1")
    assert "search.population must be at least 1, not 0" in error("--search.population", "0")
    assert "search.mutations must be at least 0, not -1" in error("--search.mutations=-1")
    assert "search.mutation is a probability, between 0 and 1, not 2" in error("--search.mutation", "2")
    assert "search.lr must be above 0, not 0.0" in error("--search.lr", "0")
    assert "search.prompts must name widths of at least 1, not [0, 5]" in error("--search.prompts", "[0, 5]")
    assert "search.depths must name numbers of at least 1, not []" in error("--search.depths", "[]")
    assert "are more than the search.population 3 that they are part of" in error("--search.population", "3")
    assert "there is no 'optim.l'" in error("--optim.l", "1")
    assert "one config file is expected; got" in error(NOAH)
    file = tmp_path / "own.yaml"
    file.write_text("method: {name: noah}\nsearch: {bugdet: 3}\n")
    assert f"{file}: there is no 'search.bugdet'; did you mean 'search.budget'?" in error(file=file)
    file.write_text("method: {name: noah}\nsearch: 5\n")
    assert f"{file}: search holds several settings, not the single value 5" in error(file=file)
    assert not searched


def test_the_settings_of_a_search_are_not_those_of_a_training(tool):
    ended = tool("train", NOAH, "--search.budget", "1")
    assert ended.code == 2
    assert "there is no 'search'" in ended.err


def test_help_lists_the_settings_of_the_search(tool):
    ended = tool("search", "--help")
    assert ended.code == 0
    assert "usage: tools/search.py CONFIG [--search.key value ...] [--key value ...]" in ended.out
    for line in ("--search.budget BUDGET", "--search.mutation MUTATION", "tools/train.py --help"):
        assert line in ended.out
    assert "--search.lora+" not in ended.out
    assert "--search CONFIG" not in ended.out
