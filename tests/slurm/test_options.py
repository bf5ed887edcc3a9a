import pytest

from vpeft.schema import ConfigError
from vpeft.slurm import SlurmOptions, options


def test_options_become_arguments_of_sbatch(tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text("partition: gpu\naccount: vision\ngpus: a100:2\ntasks: 2\nsetup: module load python\n")
    pairs = [
        ("file", str(file)),
        ("partition", "long"),
        ("time", "2:00:00"),
        ("extra", "--reservation=r"),
        ("grace", "90"),
    ]
    found = options(pairs)
    assert found.setup == ["module load python"]
    assert found.arguments() == [
        "--partition=long",
        "--account=vision",
        "--time=2:00:00",
        "--gres=gpu:a100:2",
        "--nodes=1",
        "--ntasks-per-node=2",
        "--cpus-per-task=1",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@90",
        "--reservation=r",
    ]


def test_nothing_given_is_left_to_the_cluster():
    assert options([]) == SlurmOptions()
    assert options([("mem", "null")]).mem == "null", "texts are taken as they stand"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("partiton", "gpu", "command line: there is no slurm.partiton; did you mean 'partition'?"),
        ("nodes", "0", "command line: slurm.nodes must be a whole number of at least 1, not 0"),
        ("cpus", "true", "command line: slurm.cpus must be a whole number of at least 1, not True"),
        ("stage", "perhaps", "command line: slurm.stage must be true or false, not 'perhaps'"),
        ("time", "2h", "command line: slurm.time must be minutes, hours:minutes:seconds or days-hours, not '2h'"),
        ("account", " ", "command line: slurm.account must be one text, not ' '"),
        ("extra", "[1]", "command line: slurm.extra must be a list of texts, not [1]"),
        ("limit", "[", "command line: the value of --slurm.limit is not valid YAML: ["),
        (
            "extra",
            "--array=3",
            "command line: slurm.extra holds arguments of sbatch that this does not set, as --reservation=x; not "
            "--array=3",
        ),
    ],
)
def test_a_mistake_is_one_sentence(key, value, sentence):
    with pytest.raises(ConfigError) as refused:
        options([(key, value)])
    assert str(refused.value) == sentence


def test_a_limit_that_is_over_before_the_grace_begins_is_refused():
    with pytest.raises(
        ConfigError, match=r"slurm.grace is 120 s and slurm.time 2 is 120 s: every run would be told to"
    ):
        options([("time", "2")])
    limits = {"3": 180, "1:30": 90, "1:00:01": 3601, "1-2": 93600, "1-2:03": 93780, "0-0:0:30": 30, "infinite": 1e9}
    for time, seconds in limits.items():
        assert options([("time", time), ("grace", str(min(seconds - 1, 10**8)))]).time == time
        if time != "infinite":
            with pytest.raises(ConfigError, match=f"is {seconds} s: every"):
                options([("time", time), ("grace", str(seconds))])


def test_a_mistake_in_the_file_names_it(tmp_path):
    file = tmp_path / "lab.yaml"
    file.write_text("time: 2:00:00\n")  # which YAML reads as a number
    with pytest.raises(ConfigError) as refused:
        options([("file", str(file))])
    assert str(refused.value) == (
        f"{file}: slurm.time must be in quotes in YAML, which reads 2:00:00 as the number 7200; not 7200"
    )
