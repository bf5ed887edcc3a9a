"""What is wrong with a multimodal configuration is one sentence, and nothing has been written."""

from pathlib import Path

import pytest

from mllm import run
from mllm.blip2.build import mistakes as of_blip2
from mllm.blip2.schema import Blip2Config
from tests.mllm.runs import tiny_config, write_language
from vpeft import run as runs
from vpeft.config import ConfigError, parse, to_yaml


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return write_language(tmp_path_factory.mktemp("language"))


@pytest.fixture
def write(language, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(tiny_config(language, tmp_path / "runs")))
    return str(file)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--connector.name", "mpl"], r"command line: there is no connector 'mpl'; did you mean mlp\?"),
        (["--connector.dept", "3"], r"command line: connector mlp has no 'dept'; did you mean 'depth'\?"),
        (["--connector.depth", "deep"], "command line: connector mlp: depth is 'deep', which is not a whole number"),
        (["--language_method.name", "lorra"], r"there is no language_method 'lorra'; did you mean lora or qlora\?"),
        (["--language_method.rank", "2"], r"language_method lora has no 'rank'; it has r, alpha"),
        (["--method.name", "lorra"], r"there is no method 'lorra'; did you mean"),
        (
            ["--method.name", "fishmask"],
            "command line: fishmask looks at images with one label each before it trains, and here are texts",
        ),
        (
            ["--method.name", "lora", "--cache_features", "true"],
            "command line: cache_features keeps what the frozen tower makes of an image, and lora changes that",
        ),
        (
            ["--connector.name", "gated_xattn", "--data.pack", "true"],
            "command line: data.pack puts several samples into a row, and the layers of gated_xattn look at one",
        ),
        (
            ["--connector.name", "zero_init_prompt", "--data.pack", "true"],
            "the layers of zero_init_prompt look at one sample's images; leave data.pack out",
        ),
        (
            ["--train.strategy", "fsdp", "--language_method.name", "qlora"],
            "command line: train.strategy fsdp has no way to share out weights of 4 bits; use ddp, or lora",
        ),
        (["--freeze_connector", "true"], "command line: freeze_connector keeps the connector of an earlier stage"),
        (["--evaluation.max_new_tokens", "0"], "evaluation.max_new_tokens must be at least 1, not 0"),
        (["--evaluation.beams", "0"], "command line: evaluation.beams must be at least 1, not 0"),
        (["--evaluation.samples", "0"], "command line: evaluation.samples must be at least 1, not 0"),
        (["--evaluation.controls", "true"], "evaluation.controls scores answers, and evaluation.score is none"),
        (["--optim.lr", "0"], "command line: optim.lr must be above 0, not 0"),
        (["--optim.lr", ".inf"], "command line: optim.lr must be a finite number, not inf"),
        (["--optim.connector_lr", "-1"], "command line: optim.connector_lr must be at least 0, not -1"),
        (["--optim.vision_lr", "-1"], "command line: optim.vision_lr must be at least 0, not -1"),
        (["--optim.language_lr", "-1"], "command line: optim.language_lr must be at least 0, not -1"),
        (["--optim.gate_lr", "-1"], "command line: optim.gate_lr must be at least 0, not -1"),
        (["--optim.betas", "[0.9]"], r"command line: optim.betas must be two numbers from 0 to below 1, not \[0.9\]"),
        (["--optim.betas", "[0.9, 1.0]"], "optim.betas must be two numbers from 0 to below 1"),
        (
            ["--optim.warmup", "1"],
            "command line: optim.warmup is a share of all steps, from 0 to below 1, or 2 steps or more, not 1",
        ),
        (["--optim.warmup", "2.5"], "or 2 steps or more, not 2.5"),
        (["--optim.clip", "0"], "command line: optim.clip must be above 0, not 0"),
        (["--train.steps", "0"], "command line: train.steps must be at least 1, not 0"),
        (["--train.val_every", "0"], "command line: train.val_every must be at least 1, not 0"),
        (["--train.accumulate", "0"], "command line: train.accumulate must be at least 1, not 0"),
        (["--train.devices", "0"], "command line: train.devices must be at least 1, or -1 for all, not 0"),
        (
            ["--cache_features", "true", "--train.devices", "2"],
            "cache_features keeps images in the memory of one process; give train.devices 1 and train.nodes 1",
        ),
        (["--cache_features", "true", "--train.nodes", "2"], "keeps images in the memory of one process"),
        (["--train.precision", "16-mixed"], "train.precision 16-mixed needs a GPU; use bf16-mixed or 32-true"),
        (["--data.pack", "true", "--data.group_by_length", "true"], "data.pack fills every row"),
        (["--data.question", "Why?"], "data.question must have {} where the question goes, and is 'Why"),
        (["--data.task", "mine"], "data.task 'mine' has no files; give data.files.train, or a set that needs none"),
        (["--data.template", "bear"], r"data.template 'bear' is not known; did you mean 'bare'\?"),
        (
            ["--data.max_length", "9"],
            "has 15 tokens, and its first answer begins behind position 9, data.max_length; raise it",
        ),
        (["--vision.pretrained", "missing.safetensors"], "There is no weights file missing.safetensors"),
        (["--vision.backbone", "vit_nope"], "vit_nope"),
        (["--vision.layer", "9"], "layer is 9, and test_vit.r160_in1k has 6 blocks"),
        (["--vision.prefx", "true"], r"command line: there is no 'vision.prefx'; did you mean 'vision.prefix'\?"),
        (["--language.name", "smolm"], r"There is no language model 'smolm' .* there is smollm2_135m_instruct"),
        (["--language.pretrained", "some"], "language: pretrained is 'some'; give auto or none"),
        (["--language.dtype", "float16"], "language.dtype"),
        (["--language.checkpointing", "true", "--language_method.name", "prefix"], "stands in. Use another"),
        (["--language_method.name", "bitfit"], "bitfit found no bias in .* models of its kind have none"),
        (
            ["--language_method.name", "qlora"],
            "qlora keeps the language model in 4 bits, which bitsandbytes computes on",
        ),
        (["--language_method.targets", "[w]"], "lora: targets names 'w', which is no role"),
        (
            ["--language_method.name", "frozen", "--freeze_connector", "true", "--start", "missing.safetensors"],
            "missing.safetensors",
        ),
        (["--name", "a/b"], "command line: name must be the name of one folder"),
        (["--data.max_length", "129"], "was made for 128 positions; give data.max_length 128 or less"),
        (
            ["--data.max_length", "128", "--language_method.name", "prefix", "--language_method.tokens", "4"],
            "made for 128 positions with the 4 tokens of its prefix; give data.max_length 124 or less",
        ),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(write, tmp_path, words, sentence):
    with pytest.raises((ConfigError, ValueError, FileNotFoundError), match=sentence) as error:
        runs.train(parse([write, *words]))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"connector": {"name": "mpl"}}, "there is no connector 'mpl'"),
        ({"method": {"name": "lorra"}}, "there is no method 'lorra'"),
        ({"language_method": {"name": "lora", "rank": 2}}, "language_method lora has no 'rank'"),
        ({"connector": {"name": "gated_xattn"}, "data": {"pack": True}}, "data.pack puts several samples into a row"),
    ],
)
def test_so_it_is_of_a_configuration_that_code_has_made(language, tmp_path, change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run.train(tiny_config(language, tmp_path / "runs", **change))
    assert not (tmp_path / "runs").exists()


def test_a_mistake_in_a_file_names_it_and_the_key(language, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(tiny_config(language, tmp_path)).replace("clip: 1.0", "clip: 0"))
    with pytest.raises(ConfigError, match=r"config\.yaml: optim\.clip must be above 0, not 0"):
        parse([str(file)])


def test_sharing_out_needs_no_scaler(language, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    train = {"strategy": "fsdp", "precision": "16-mixed", "accelerator": "gpu"}
    with pytest.raises(ConfigError, match=r"train\.strategy fsdp has no scaler for 16-mixed; use bf16-mixed"):
        run.check(tiny_config(language, tmp_path, train=train))


def test_sharing_out_needs_to_know_among_how_many(language, tmp_path):
    train = {"strategy": "fsdp", "devices": -1}
    with pytest.raises(ConfigError, match=r"give train\.devices as one, not -1"):
        run.check(tiny_config(language, tmp_path, train=train))


def test_nothing_to_train_is_refused_before_anything_is_written(language, tmp_path):
    adapter = tmp_path / "first"
    run.train(tiny_config(language, adapter, language_method={"name": "frozen"}, train={"steps": 1}))
    config = tiny_config(
        language,
        tmp_path / "runs",
        language_method={"name": "frozen"},
        start=Path(adapter / "run/adapter.safetensors"),
        freeze_connector=True,
    )
    with pytest.raises(ValueError, match="Nothing is trained: the connector is frozen, and neither"):
        run.train(config)
    assert not (tmp_path / "runs").exists()


def test_of_the_first_stage_too():
    keys = [key for key, _ in of_blip2(Blip2Config(method={"name": "dam_vp"}))]
    assert keys == ["method"]
