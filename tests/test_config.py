"""Config files and command lines: what they resolve to, and the sentence for every mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vpeft.config import Config, ConfigError, parse, to_yaml

ROOT = Path(__file__).parents[1]
VPT = "method: {name: vpt, prompts: 10}\n"
EMBEDDED = VPT + "data: {batch_size: 64}\nembedded: {image_size: 70, data: {batch_size: 32}, method: {prompts: 5}}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes c.yaml into the working directory and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(text):
        Path("c.yaml").write_text(text)
        return "c.yaml"

    return write


def test_an_empty_file_is_all_defaults(write):
    assert parse([write("")]) == Config()


def test_the_command_line_has_the_last_word(write):
    config = parse(
        [write(VPT + "optim: {lr: 1e-2}"), "--optim.lr", "1e-3", "--data.task=svhn", "--optim.head_lr", "null"]
    )
    assert (config.optim.lr, config.optim.head_lr, config.data.task) == (1e-3, None, "svhn")


def test_numbers_dates_and_null_are_what_they_look_like(write):
    config = parse([write("optim: {lr: 1e-3}\nname: 2024-01-01\nimage_size: [64, 96]\ndata: {root: null}\n")])
    assert (config.optim.lr, config.name, config.image_size, config.data.root) == (1e-3, "2024-01-01", [64, 96], None)


def test_texts_of_the_command_line_are_not_read_as_yaml(write):
    config = parse([write(""), "--name", "123", "--data.root", "a: b", "--normalization", "none"])
    assert (config.name, config.data.root, config.normalization) == ("123", Path("a: b"), "none")


def test_an_option_of_the_method_is_overridden(write):
    assert parse([write(VPT), "--method.prompts", "20"]).method["prompts"] == 20


def test_another_method_replaces_the_first_with_its_options(write):
    assert parse([write(VPT), "--method", "{name: bitfit}"]).method == {"name": "bitfit", "position_tables": False}


def test_a_mapping_without_a_name_changes_options(write):
    assert parse([write(VPT), "--method", "{deep: false}"]).method | {"project": 0} == {
        "name": "vpt",
        "prompts": 10,
        "deep": False,
        "dropout": 0.1,
        "project": 0,
    }


def test_a_list_of_methods_is_given_as_json(write):
    method = parse([write(VPT), "--method", '[{"name": "vpt", "prompts": 3}, {"name": "lora"}]']).method
    assert [spec["name"] for spec in method] == ["vpt", "lora"]
    assert method[1]["targets"] == ["q", "v"], "defaults are written out, in plain types"


def test_the_embedded_section_counts_while_there_is_no_data_root(write):
    config = parse([write(EMBEDDED)])
    assert (config.image_size, config.data.batch_size, config.method["prompts"]) == (70, 32, 5)


@pytest.mark.parametrize("where", ["command line", "file"])
def test_the_embedded_section_is_left_out_with_a_data_root(write, where):
    text = EMBEDDED.replace("data: {batch_size: 64}", "data: {batch_size: 64, root: DIR}")
    config = parse([write(text)] if where == "file" else [write(EMBEDDED), "--data.root", "DIR"])
    assert (config.image_size, config.data.batch_size, config.method["prompts"]) == (None, 64, 10)


@pytest.mark.parametrize("words", [[], ["--data.format", "auto"], ["--data.format", "embedded"]])
def test_the_embedded_section_counts_for_an_embedded_task_under_a_root_of_ones_own(write, words):
    config = parse([write(EMBEDDED), "--data.root", "DIR", "--data.task", "textile", *words])
    assert (config.data.task, config.data.root, config.image_size) == ("textile", Path("DIR"), 70)


@pytest.mark.parametrize(
    "words", [["--data.task", "svhn"], ["--data.task", "digits", "--data.format", "folder"], ["--data.task", "my_own"]]
)
def test_the_embedded_section_is_left_out_for_other_data(write, words):
    assert parse([write(EMBEDDED), "--data.root", "DIR", *words]).image_size is None


def test_the_command_line_overrides_the_embedded_section(write):
    assert parse([write(EMBEDDED), "--method.prompts", "7", "--image_size", "56"]).image_size == 56


def test_print_config_prints_a_file_that_resolves_to_the_same(write, capsys):
    words = [write(EMBEDDED), "--optim.lr", "1e-05", "--name", "123", "--data.task", "no"]
    with pytest.raises(SystemExit) as ended:
        parse([*words, "--print_config"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert "embedded" not in printed
    assert "dropout: 0.1" in printed, "options at their defaults are written too"
    config = parse(words)
    assert parse([write(printed)]) == config
    assert to_yaml(config) == printed


MISTAKES = {
    # key
    "unknown section": ("", ["--dta.task", "x"], "command line: there is no 'dta'; did you mean 'data'?"),
    "unknown key": ("data: {tsk: x}", [], "c.yaml: there is no 'data.tsk'; did you mean 'data.task'?"),
    "key of another section": ("lr: 1", [], "c.yaml: there is no 'lr'; did you mean 'optim.lr'?"),
    "unknown in embedded": (
        "embedded: {optim: {lrr: 1}}",
        ["--data.root", "DIR"],
        "c.yaml: there is no 'embedded.optim.lrr'; did you mean 'optim.lr'?",
    ),
    "nothing near": ("head: {zzz: 1}", [], "c.yaml: there is no 'head.zzz'; there is head.kind, head.init, "),
    "number as a key": (
        "1: 2",
        [],
        "c.yaml: there is no '1'; there is kind, method, backbone, pretrained, image_size, ",
    ),
    # type
    "text for a number": ("", ["--optim.lr", "abc"], "command line: optim.lr must be a number, not 'abc'"),
    "null for a number": ("optim: {lr: null}", [], "c.yaml: optim.lr must be a number, not null"),
    "fraction for a count": ("train: {epochs: 1.5}", [], "c.yaml: train.epochs must be a whole number, not 1.5"),
    "bool for a count": ("seed: true", [], "c.yaml: seed must be a whole number, not True"),
    "number for a bool": ("", ["--train.compile", "1"], "command line: train.compile must be true or false, not 1"),
    "number for a text": ("backbone: 3", [], "c.yaml: backbone must be text, not 3"),
    "number for a path": ("data: {root: 3}", [], "c.yaml: data.root must be a path or null, not 3"),
    "wrong items": (
        "",
        ["--image_size", "[70, 7.5]"],
        "command line: image_size must be a whole number or a list of whole numbers or null, not [70, 7.5]",
    ),
    "wrong choice": (
        "train: {selection: best}",
        [],
        "c.yaml: train.selection must be one of last, best_val, not 'best'; did you mean 'best_val'?",
    ),
    "wrong in embedded": ("embedded: {seed: x}", [], "c.yaml: embedded.seed must be a whole number, not 'x'"),
    "value for a section": ("data: 3", [], "c.yaml: data holds several settings, not the single value 3"),
    # value
    "negative lr": ("optim: {lr: -1}", [], "c.yaml: optim.lr must be above 0, not -1.0"),
    "not finite": ("", ["--optim.lr", ".inf"], "command line: optim.lr must be a finite number, not inf"),
    "no epochs": (
        "",
        ["--train.epochs", "0", "--optim.warmup_epochs", "0"],
        "command line: train.epochs must be at least 1, not 0",
    ),
    "no batch": ("data: {batch_size: 0}", [], "c.yaml: data.batch_size must be at least 1, not 0"),
    "drop path": ("drop_path: 1", [], "c.yaml: drop_path must be below 1, not 1.0"),
    "floor above the peak": ("optim: {min_lr: 2}", [], "c.yaml: optim.min_lr must be at most 1, not 2.0"),
    "no devices": (
        "",
        ["--train.devices", "0"],
        "command line: train.devices must be at least 1, or -1 for all, not 0",
    ),
    "no pixels": ("image_size: 0", [], "c.yaml: image_size must be above 0, not 0"),
    "three sides": (
        "image_size: [1, 2, 3]",
        [],
        "c.yaml: image_size must be one side or [height, width], not 3 numbers",
    ),
    "selection on training data": (
        "",
        ["--train.selection", "best_val"],
        "command line: train.selection best_val chooses on val200, which data.split train800val200 trains on; "
        "give data.split train800 or train.selection last",
    ),
    "endless warm-up": (
        "train: {epochs: 5}",
        [],
        "c.yaml: optim.warmup_epochs is 10 and train.epochs is 5: the learning rate would never reach its peak; "
        "give, for example, --optim.warmup_epochs 0.5",
    ),
    "name with folders": (
        "name: ../x",
        [],
        "c.yaml: name must be the name of one folder, not '../x'; its parent is 'output'",
    ),
    # method
    "method as a word": (
        "",
        ["--method", "vpt"],
        "command line: method must be a mapping with a name, such as {name: vpt, prompts: 10}, or a list of these, "
        "not 'vpt'",
    ),
    "kind that is a list": ("kind: [mllm]", [], "c.yaml: there is no kind ['mllm']; did you mean 'mllm'?"),
    "method that is a list": ("method: {name: [vpt]}", [], "c.yaml: there is no method '['vpt']'; did you mean vpt?"),
    "option that is a number": ("method: {name: vpt, 1: 2}", [], "c.yaml: method vpt has no '1'; it has prompts, "),
    "unknown method": ("method: {name: vptt}", [], "c.yaml: there is no method 'vptt'; did you mean vpt or "),
    "unknown option in the file": (
        "method: {name: vpt, promts: 1}",
        [],
        "c.yaml: method vpt has no 'promts'; did you mean 'prompts'?",
    ),
    "unknown option given": (
        VPT,
        ["--method.promts", "1"],
        "command line: method vpt has no 'promts'; did you mean 'prompts'?",
    ),
    "wrong type of an option": (
        VPT,
        ["--method.prompts", "many"],
        "command line: method vpt: prompts is 'many', which is not a whole number",
    ),
    "option for a list": (
        "method: [{name: vpt}, {name: lora}]",
        ["--method.rank", "4"],
        "command line: --method.rank does not say which of the 2 entries of method in c.yaml it is for; give the whole "
        """list, as in --method '[{"name": "vpt"}, {"name": "lora"}]'""",
    ),
    # words
    "no value": (VPT, ["--train.compile"], "command line: --train.compile needs a value: --train.compile VALUE"),
    "two files": (VPT, ["d.yaml"], "command line: one config file is expected; got c.yaml and d.yaml"),
    "half a list": (VPT, ["--method", "[1"], "command line: the value of --method is not valid YAML: [1"),
}


@pytest.mark.parametrize(("text", "words", "sentence"), MISTAKES.values(), ids=list(MISTAKES))
def test_a_mistake_is_one_sentence(write, text, words, sentence):
    with pytest.raises(ConfigError) as caught:
        parse([write(text), *words])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_no_file_at_all():
    with pytest.raises(ConfigError, match=r"one config file is expected; give one, such as configs/vtab/vpt\.yaml"):
        parse([])


def test_a_config_calls_nothing(write, tmp_path):
    """jsonargparse's own instantiation would import and call what a class_path inside an untyped value names."""
    spec = f"{{class_path: pathlib.Path.touch, init_args: {{self: {tmp_path / 'touched'}}}}}"
    with pytest.raises(ConfigError, match="method vpt: prompts is"):
        parse([write(f"method: {{name: vpt, prompts: {spec}}}")])
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("words", [["--help"], ["no.yaml"], ["c.yaml", "--optim.lr", "x"]])
def test_help_and_mistakes_import_nothing_heavy(write, words):
    write(VPT)
    code = (
        "import sys\nfrom vpeft import config\n"
        f"try: config.parse({words!r})\nexcept (SystemExit, config.ConfigError): pass\n"
        "print('loaded', *{'torch', 'timm', 'torchvision', 'lightning', 'transformers'} & set(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "loaded"
