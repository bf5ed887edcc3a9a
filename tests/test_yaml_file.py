"""Config files that are missing or are none, and the sentence for each of them."""

import pytest

from vpeft.config import ConfigError, parse


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = {
    "syntax": (b"a: [1\nb: 2", "c.yaml: not a valid YAML config at line 2: "),
    "twice": (b"seed: 1\nseed: 2", "c.yaml: not a valid YAML config at line 2: 'seed' is given twice"),
    "list": (b"- 1", "c.yaml: a config is a mapping of keys to values, not a list"),
    "text": (b"vpt", "c.yaml: a config is a mapping of keys to values, not the text 'vpt'"),
    "binary": (b"\xff\xfe\x00", "c.yaml: not a valid YAML config: "),
    "python": (b"name: !!python/object/apply:os.getcwd []", "c.yaml: not a valid YAML config at line 1: "),
    "unhashable key": (b"? [1]\n: 2", "c.yaml: not a valid YAML config at line 1: found unhashable key"),
    "too deep": (b"[" * 3000, "c.yaml: not a valid YAML config: nested too deep"),
    "too many digits": (
        b"seed: " + b"1" * 5000,
        "c.yaml: not a valid YAML config: a value that is not of its kind (Ex",
    ),
    "hexadecimal": (
        b"seed: 0x" + b"f" * 5000,
        "c.yaml: not a valid YAML config at line 1: a number of too many digits",
    ),
    "tagged": (b"seed: !!int x", "c.yaml: not a valid YAML config: a value that is not of its kind (invalid literal"),
    "holds itself": (b"head: &a {kind: *a}", "c.yaml: not a valid YAML config at line 1: an alias that holds itself"),
    "grows": (
        b"a0: &a0 x\n" + b"".join(b"a%d: &a%d [%s]\n" % (i + 1, i + 1, b",".join([b"*a%d" % i] * 9)) for i in range(9)),
        "c.yaml: not a valid YAML config at line 7: aliases of over 100,000 values",
    ),
}


@pytest.mark.parametrize(("content", "sentence"), FILES.values(), ids=list(FILES))
def test_a_file_that_is_no_config_is_one_sentence(here, content, sentence):
    (here / "c.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        parse(["c.yaml"])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_nearest(here):
    (here / "c.yaml").touch()
    with pytest.raises(ConfigError, match=r"^cc\.yaml: there is no such file; did you mean 'c\.yaml'\?$"):
        parse(["cc.yaml"])
    with pytest.raises(ConfigError, match=r"^no/c\.yaml: there is no folder no$"):
        parse(["no/c.yaml"])
    with pytest.raises(ConfigError, match=r"^\.: is a folder, not a config file; there is c\.yaml$"):
        parse(["."])
    (here / "c.yaml").unlink()
    with pytest.raises(
        ConfigError, match=r"^c\.yaml: there is no such file; .* holds no \.yaml file, so give the path"
    ):
        parse(["c.yaml"])
