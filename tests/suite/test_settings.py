import pytest

from vpeft.config import ConfigError
from vpeft.suite import plan, settings
from vpeft.suite.settings import Request

LORA, VPT = "configs/vtab/lora.yaml", "configs/vtab/vpt.yaml"


def parse(*words) -> Request:
    request = settings.parse(words)
    assert isinstance(request, Request)
    return request


def test_all_tasks_are_the_embedded_ones_without_data_and_the_nineteen_with_it(tmp_path):
    assert {"digits", "easyvqa_position"} <= set(parse(LORA).tasks)
    assert "elpv" not in parse(LORA).tasks, "its licence is asked for first"
    assert len(parse(LORA, "--root", str(tmp_path)).tasks) == 19
    assert parse(LORA, "--root", str(tmp_path), "--tasks", "cifar,svhn").tasks == ["cifar100", "svhn"]


def test_other_keys_are_passed_on_wherever_they_stand():
    request = parse("--optim.lr", "5e-3", LORA, "--tasks=digits", VPT, "--train.epochs=2", "--protocol", "osu-lessons")
    assert request.configs == [LORA, VPT]
    assert request.overrides == [("optim.lr", "5e-3"), ("train.epochs", "2"), ("protocol", "osu-lessons")]


def test_status_takes_a_folder_or_the_output_of_a_command(tmp_path):
    assert settings.parse(["--status", str(tmp_path)]) == tmp_path
    assert settings.parse([LORA, "--output", str(tmp_path), "--status"]) == tmp_path


def test_seeds_are_a_number_or_a_list():
    assert parse(LORA, "--seeds", "3").seeds == [0, 1, 2]
    assert parse(LORA, "--seeds", "42,44").seeds == [42, 44]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "at least one config file is expected, such as configs/vtab/vpt.yaml"),
        ([LORA, "--tasks"], "--tasks needs a value: --tasks VALUE"),
        ([LORA, "--tasks", "digts"], "there is no embedded task 'digts'; did you mean 'digits'"),
        ([LORA, "--tasks", "svhn"], "--tasks svhn is a task of VTAB-1k: give its data's folder, --root DIR"),
        ([LORA, "--tasks", "digits,digits"], "--tasks names digits twice"),
        ([LORA, "--tasks", ","], "--tasks names no task; give names, comma-separated, or all"),
        ([LORA, "--root", "nowhere"], "nowhere is no folder"),
        ([LORA, "--output", "README.md"], "--output README.md is a file; give a folder (made where missing)"),
        ([LORA, "--seeds", "x"], "--seeds must be how many, or seeds such as 0,1,2, not 'x'"),
        ([LORA, "--seeds", "0"], "--seeds must be how many, or seeds such as 0,1,2, not '0'"),
        ([LORA, "--seeds", "1,1"], "--seeds names 1 twice"),
        ([LORA, "--seeds", "4294967296,"], "--seeds 4294967296: a seed must be below 4294967296"),
        (
            [LORA, "--seeds", "20261130"],
            "--seeds 20261130: a number of seeds is below 10000; one seed alone is",
        ),
        ([LORA, "--retries", "x"], "a whole number of at least 0 is expected, not 'x'"),
        ([LORA, "--jobs", "0"], "a whole number of at least 1 is expected, not '0'"),
        ([LORA, "--launcher", "lsf"], "invalid choice: 'lsf'"),
        ([LORA, "--data.task", "digits"], "--data.task is set by the suite; give --tasks"),
        ([LORA, "--seed", "3"], "--seed is set by the suite; give --seeds"),
        ([LORA, "--slurm.partition", "gpu"], "--slurm.partition needs --launcher slurm"),
        ([LORA, "--sweep", "lr,wd,lr"], "--sweep names optim.lr twice"),
        ([LORA, "--sweep", "lr=1e-3,1e-3"], "the values of optim.lr name 0.001 twice"),
        ([LORA, "--sweep", "lr="], "--sweep optim.lr= has no values; give them, as in --sweep optim.lr=A,B"),
        ([LORA, "--sweep", "lr=[1"], "--sweep optim.lr=[1 is no list of values, such as 1e-3,1e-2"),
        ([LORA, "--sweep", "rank=4,8"], "there is no 'rank' to sweep; give lr, wd, or dotted keys such as"),
        ([LORA, "--sweep", "data.split=a,b"], "data.split cannot be swept: a suite sets it itself"),
        ([LORA, "--sweep", "lr", "--optim.lr", "1"], "optim.lr has one value in --optim.lr and several in --sweep"),
        ([LORA, "--sweep", "lr", "--data.split", "train800"], "with --sweep, data.split is set by the suite"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(words, sentence):
    with pytest.raises(ConfigError) as caught:
        settings.parse(words)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("command line: ")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([LORA, "--sweep", "method.rank"], "--sweep method.rank has no values: configs/vtab/lora.yaml has no sweep"),
        ([LORA, VPT, "--sweep", "method.rank=4,8"], "method vpt has no 'rank'"),
        ([LORA, "--sweep", "lr=-1,1"], "optim.lr must be above 0, not -1"),
        ([LORA, LORA], "two configs are called lora.yaml, and methods are told apart by that"),
        ([LORA, "--sweep", "lr", "--train.selection", "best_val"], "train.selection best_val"),
        (["configs/multitask/mtlora.yaml"], "this is for kind classification"),
        ([LORA, "--train.devices", "2"], "train.devices is 2 and train.nodes 1, and the local launcher gives each"),
        ([LORA, "--train.nodes", "2"], "train.devices is 1 and train.nodes 2, and the local launcher gives each run"),
    ],
)
def test_a_plan_that_cannot_work_is_one_sentence(words, sentence):
    with pytest.raises(ConfigError) as caught:
        plan.build(parse(*words, "--tasks", "digits"))
    assert sentence in str(caught.value)


def test_a_task_that_is_not_in_the_folder_is_named_before_anything_runs(tmp_path):
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn" / "train800.txt").write_text("")
    with pytest.raises(ValueError, match="holds no task 'cifar100'"):
        plan.build(parse(LORA, "--root", str(tmp_path), "--tasks", "cifar100"))


def test_a_file_states_its_grid_and_another_one_for_the_embedded_tasks(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("method: {name: lora}\nsweep: {lr: [1, 2, 3], wd: [0]}\nembedded: {sweep: {lr: [4, 5]}}\n")
    finals = [one for one in plan.build(parse(str(file), "--tasks", "digits", "--sweep", "lr,wd")) if one.grid]
    assert finals[0].grid == {"optim.lr": [4, 5], "optim.weight_decay": [0]}


@pytest.mark.parametrize("section", ["3", "{lr: 3}", "{lr: []}", "{lr: [1, 1]}", "{rank: [1]}"])
def test_a_malformed_section_is_refused(tmp_path, section):
    file = tmp_path / "own.yaml"
    file.write_text(f"method: {{name: lora}}\nsweep: {section}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml: "):
        plan.build(parse(str(file), "--tasks", "digits", "--sweep", "lr"))


def test_a_member_is_known_by_what_decides_its_numbers(tmp_path):
    (one,) = plan.build(parse(LORA, "--tasks", "digits"))
    (same,) = plan.build(parse(LORA, "--tasks", "digits", "--data.workers", "2", "--output", str(tmp_path)))
    (other,) = plan.build(parse(LORA, "--tasks", "digits", "--optim.lr", "3e-3"))
    assert one.id == same.id != other.id
    assert one.cell == other.cell


def test_packs_hold_what_can_be_trained_together():
    words = ["--tasks", "digits,fashion", "--seeds", "2", "--sweep", "lr=1e-3,1e-2"]
    groups = plan.items(plan.build(parse(LORA, VPT, *words)), 3)
    for group in groups:
        assert len({(one.method, one.phase) for one in group}) == 1
        assert len(group) <= 3
    assert [len(group) for group in groups].count(3) == 4
    unpackable = plan.items(plan.build(parse("configs/vtab/full.yaml", *words)), 3)
    assert {len(group) for group in unpackable} == {1}
    open_structure = ["--tasks", "digits,fashion", "--seeds", "2", "--sweep", "method.rank=2,4"]
    finals = [group for group in plan.items(plan.build(parse(LORA, *open_structure)), 4) if group[0].phase == "final"]
    assert [{one.task for one in group} for group in finals] == [{"digits"}, {"fashion"}]


def test_a_sweep_of_a_file_that_chooses_its_epoch_is_refused(tmp_path):
    file = tmp_path / "chooses.yaml"
    file.write_text(
        "method: {name: lora}\ndata: {split: train800}\ntrain: {selection: best_val}\nembedded: {backbone: test_vit}\n"
    )
    with pytest.raises(ConfigError, match=r"chooses an epoch on val200, .* give --train\.selection last"):
        plan.build(parse(str(file), "--sweep", "lr=0.1", "--tasks", "digits"))


def test_two_files_of_one_setting_are_refused(tmp_path):
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        file.write_text("method: {name: lora}\n")
    with pytest.raises(ConfigError, match=r"a and b state the same runs, such as .*; leave one of them out"):
        plan.build(parse(*map(str, files), "--tasks", "digits"))
