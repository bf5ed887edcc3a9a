"""Protocols: what they hold, in which order they are laid over a config, and what a row says of them."""

import configparser
from pathlib import Path

import pytest

from tests.runs import tiny_config, write_images
from vpeft import protocols, run
from vpeft.config import Config, ConfigError, departures, parse, to_yaml
from vpeft.yaml_file import read_yaml

ROOT = Path(__file__).parents[1]
LORA = str(ROOT / "configs/vtab/lora.yaml")
VTAB = ["--data.task", "svhn", "--data.root", "DIR"]
HELD = {
    "normalization": None,
    "drop_path": None,
    "data": {"split", "resize", "interpolation", "augment", "batch_size", "drop_last"},
    "optim": set(vars(Config().optim)),
    "train": {"epochs", "precision", "accumulate", "clip", "ema", "label_smoothing", "selection"},
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        Path("c.yaml").write_text(text)
        return "c.yaml"

    return write


def test_the_four_are_there():
    assert protocols.names() == ["adapter-plus", "noah-family", "osu-lessons", "paper-vpt"]


def test_an_installed_package_has_them_and_configs_shows_the_same_files():
    package = ROOT / "vpeft"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = setup["options.package_data"]["vpeft"].split(",")
    shipped = {file for pattern in patterns for file in package.glob(pattern.strip())}
    assert set(package.rglob("*.yaml")) <= shipped
    for name in protocols.names():
        assert protocols.file(name) in shipped
        assert (ROOT / "configs/protocols" / f"{name}.yaml").samefile(protocols.file(name))


@pytest.mark.parametrize("name", protocols.names())
def test_a_protocol_holds_protocol_settings_only_and_names_its_sources(name):
    tree = read_yaml(protocols.file(name))
    for part in (tree, tree["embedded"]):
        for key, value in part.items():
            if key != "embedded":
                assert key in HELD
                assert not isinstance(value, dict) or set(value) <= HELD[key]
    assert (tree["data"]["split"], tree["train"]["selection"]) == ("train800val200", "last")
    header = "".join(line for line in protocols.file(name).read_text().splitlines(keepends=True) if line[0] == "#")
    for said in (f"# {name}: ", "arXiv:", " @ ", "Differs: ", "Not set here: ", f"--protocol {name} "):
        assert said in header


@pytest.mark.parametrize("name", protocols.names())
@pytest.mark.parametrize("path", sorted((ROOT / "configs/vtab").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_protocol_goes_over_every_config(name, path):
    for words in ([], VTAB):
        config = parse([str(path), "--protocol", name, *words])
        assert (config.protocol, departures(config)) == (name, {})


def test_the_protocol_is_over_the_config_and_under_the_command_line():
    config = parse([LORA, *VTAB, "--protocol", "adapter-plus", "--optim.weight_decay", "0.5"])
    assert config.method["rank"] == 8
    assert (config.normalization, config.data.interpolation, config.train.precision) == (
        "auto",
        "bilinear",
        "bf16-mixed",
    )
    assert config.optim.weight_decay == 0.5
    assert departures(config) == {"optim.weight_decay": 0.5}


def test_the_embedded_section_of_a_protocol_counts_where_the_configs_does():
    config = parse([LORA, "--protocol", "adapter-plus"])
    assert (config.train.epochs, config.train.precision, config.image_size) == (6, "32-true", 56)
    assert parse([LORA, *VTAB, "--protocol", "adapter-plus"]).train.epochs == 100


def test_a_protocol_named_in_a_file_is_under_the_file(write):
    config = parse([write("protocol: noah-family\noptim: {lr: 0.5}\n"), *VTAB])
    assert (config.normalization, config.drop_path, config.optim.lr) == ("imagenet", 0.1, 0.5)
    assert departures(config) == {"optim.lr": 0.5}


def test_the_resolved_config_names_the_protocol_and_resolves_to_itself(write):
    config = parse([LORA, *VTAB, "--protocol", "adapter-plus", "--optim.lr", "0.1"])
    assert parse([write(to_yaml(config))]) == config
    assert parse([write(to_yaml(config)), "--protocol", "null"]).protocol is None


def test_without_a_protocol_nothing_departs():
    assert departures(parse([LORA])) == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("adapterplus", "did you mean 'adapter-plus'?"),
        ("zzz", "there is adapter-plus, noah-family, osu-lessons, paper-vpt"),
    ],
)
def test_an_unknown_protocol_is_one_sentence(write, name, said):
    with pytest.raises(ConfigError) as caught:
        parse([LORA, "--protocol", name])
    assert str(caught.value) == f"command line: there is no protocol '{name}'; {said}"
    with pytest.raises(ConfigError, match=f"c.yaml: there is no protocol '{name}'"):
        parse([write(f"protocol: {name}")])
    with pytest.raises(ConfigError, match=f"protocol: there is no protocol '{name}'"):
        run.check(Config(protocol=name))


def test_the_row_says_which_protocol_and_what_departs(tmp_path):
    config = tiny_config(write_images(tmp_path / "images"), tmp_path / "runs", epochs=1)
    config.protocol = "noah-family"
    row = run.train(config)
    assert row["protocol"]["name"] == "noah-family"
    assert row["protocol"]["changed"]["train.epochs"] == 1
    assert "optim.momentum" not in row["protocol"]["changed"]
