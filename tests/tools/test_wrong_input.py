"""Every command, as someone gives it who has not read its page: it ends with one sentence, and not with a traceback."""

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.adapters import save
from tests.runs import write_images
from tests.tools.conftest import Ended

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(f"{folder}/{file.name}" for folder in ("tools", "data_prep") for file in (ROOT / folder).glob("*.py"))
CONFIG, DAM_VP = ROOT / "configs/vtab/vpt.yaml", ROOT / "configs/vtab/dam_vp.yaml"
# What each reads, at the place of `{}`, and what has to be given beside it. Words with a / are in the test's folder.
READING = {
    "tools/train.py": "{}",
    "tools/search.py": "{}",
    "tools/suite.py": "{} --output /suite",
    "tools/meta_prompt.py": "{} --tasks a -o /out.safetensors",
    "tools/scaling.py": "{}",
    "tools/report.py": "{}",
    "tools/test.py": "{}",
    "tools/predict.py": "{} /images",
    "tools/merge.py": "{} -o /out.safetensors",
    "tools/export.py": "{} -o /out",
    "tools/import.py": "vpt {} --backbone vit_tiny_patch16_224 --pretrained none --classes a -o /out.safetensors",
    "tools/caption.py": "{} /images",
    "tools/chat.py": "{} --ask x",
    "tools/evaluate.py": "{}",
    "tools/segment.py": "{} --classes a",
    "data_prep/llava.py": "{} --images /images",
    "data_prep/ade20k.py": "--root /data --zip {}",
    "data_prep/pascal_context.py": "--root {}",
    "data_prep/vtab1k.py": "--root {} --verify --tasks cifar100",
}
# What may be given without another word: these have something to do then.
READY = {
    "tools/bench_deform.py",
    "tools/bench_mllm.py",
    "tools/bench_pack.py",
    "tools/docs.py",
    "data_prep/embedded.py",
}
VALUES = [
    (f"tools/train.py {CONFIG} --train.epochs x", "train.epochs must be a whole number, not 'x'"),
    (f"tools/train.py {CONFIG} --nonsense 1", "there is no 'nonsense'"),
    (f"tools/train.py {CONFIG} --output /text.txt", "A file stands where a folder is needed"),
    (f"tools/suite.py {CONFIG} --seeds x", "--seeds must be how many"),
    (f"tools/suite.py {CONFIG} --jobs 0", "a whole number of at least 1 is expected, not '0'"),
    (f"tools/search.py {CONFIG}", "A search is for method noah alone"),
    (f"tools/meta_prompt.py {DAM_VP} --tasks , -o /out.safetensors", "give at least one, and each once"),
    (f"tools/meta_prompt.py {DAM_VP} --tasks a -o /out.txt", "it has to end in .safetensors"),
    (f"tools/scaling.py {CONFIG} --pack 1,x", "a whole number of at least 1 is expected, not 'x'"),
    (f"tools/scaling.py {CONFIG} --jobs ,", "numbers are expected, such as 1,4, not ','"),
    (f"tools/scaling.py {CONFIG} --flops 0", "a number above 0 is expected, not '0'"),
    ("tools/predict.py /adapter.safetensors /empty", "holds no images"),
    ("tools/predict.py /adapter.safetensors /images --top 0", "a whole number of at least 1 is expected"),
    ("tools/predict.py /adapter.safetensors /images --device nope", "give --device cpu, or leave it out"),
    ("tools/predict.py /adapter.safetensors /images --masks /out", "--masks is for adapters of kind segmentation"),
    ("tools/predict.py /adapter.safetensors /images --csv /empty", "Is a directory"),
    ("tools/test.py /adapter.safetensors --data.task nope", "data.task 'nope' is not known"),
    ("tools/merge.py /adapter.safetensors -o /out.txt", "it has to end in .safetensors"),
    ("tools/export.py /adapter.safetensors -o /empty", "is there already; give the name of a new folder"),
    ("tools/export.py /adapter.safetensors -o /text.txt", "is there already; give the name of a new folder"),
    ("tools/import.py nope /text.txt --backbone x -o /out.safetensors", "There is no kind of file 'nope'"),
    ("tools/caption.py /adapter.safetensors /images --beams 0", "a whole number of at least 1 is expected"),
    ("tools/chat.py /adapter.safetensors", "is an adapter of vpeft; tools/test.py and tools/predict.py use it"),
    ("tools/evaluate.py /adapter.safetensors --score nope", "invalid choice: 'nope'"),
    ("tools/segment.py /images/blue/0.png --classes a --model nope", "there is no SAN 'nope'"),
    ("tools/tiny.py /text.txt", "is a file; give a folder, which is made where it is missing"),
    ("tools/tiny.py /tiny --try nope", "there is no connector 'nope' to try"),
    ("tools/bench_deform.py --rounds 0", "a whole number of at least 1 is expected, not '0'"),
    ("tools/bench_deform.py --device nope", "give --device cpu, or leave it out"),
    ("tools/bench_mllm.py --cases nope", "there are no cases nope"),
    ("tools/bench_mllm.py --batch 0", "a whole number of at least 1 is expected, not '0'"),
    ("tools/bench_pack.py --method nope", "there is no method 'nope'"),
    ("tools/bench_pack.py --backbone nope", "There is no backbone 'nope'"),
    ("tools/bench_pack.py --rounds -1", "a whole number of at least 0 is expected"),
    ("data_prep/embedded.py --tasks nope", "there is no embedded task 'nope'"),
    ("data_prep/embedded.py --tasks ,", "--tasks names no task"),
    ("data_prep/embedded.py --root /text.txt", "is a file; give a folder, which is made where it is missing"),
    ("data_prep/embedded.py --accept-licence nope", "no task asks for 'nope'; there is CC-BY-NC-SA-4.0"),
    ("data_prep/ade20k.py --root /text.txt --zip /text.txt", "is a file; give a folder"),
    ("data_prep/llava.py /text.txt --images /nowhere", "is not a folder; give the one"),
    ("data_prep/vtab1k.py --tasks nope", "VTAB-1k has no task 'nope'"),
    ("data_prep/vtab1k.py --workers -1", "give a number of processes, 0 for none"),
    ("data_prep/vtab1k.py --tasks cifar100", "--source is not given"),
    ("data_prep/vtab1k.py --source tfds --tfds-dir /text.txt --root /data", "is not a folder; give the one"),
    ("data_prep/vtab1k.py --source originals --archives /empty --root /text.txt", "is a file; give a folder"),
]

Command = Callable[[str], Ended]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Command:
    """Runs a script with words, as they are given in a shell."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("neither a config nor an adapter\n")

    def run(line: str) -> Ended:
        script, *words = line.split()
        words = [f"{tmp_path}{word}" if word[0] == "/" and not word.startswith(str(ROOT)) else word for word in words]
        monkeypatch.setattr("sys.argv", [script, *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


def refused(ended: Ended) -> str:
    """What was said, which is to be a sentence or the usage, and nothing of what is behind it."""
    assert ended.code in (1, 2)
    said = ended.err + ended.out  # what --verify finds is its answer
    assert said.strip()
    assert "Traceback" not in said
    assert "[Errno" not in said
    return said


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_given(command: Command, script: str):
    ended = command(f"{script} --help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("usage: ")


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in READY])
def test_without_arguments_it_says_what_is_needed(command: Command, script: str):
    assert any(word in refused(command(script)) for word in ("required", "expected", "not given"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_refused(command: Command, script: str):
    given = READING.get(script, "").replace("{}", "/nowhere")
    refused(command(f"{script} {given} --nonsense 1"))


@pytest.mark.parametrize("given", ["/nowhere/at.all", "/text.txt", "/images", "/empty"])
@pytest.mark.parametrize("script", READING)
def test_what_is_missing_or_of_another_kind_is_refused_by_its_path(command: Command, tmp_path, script: str, given: str):
    write_images(tmp_path / "images", 1)
    said = refused(command(f"{script} {READING[script].replace('{}', given)}"))
    assert f"{tmp_path}{given}" in said or script == "data_prep/vtab1k.py"


@pytest.mark.parametrize(("line", "said"), VALUES, ids=[line.replace(str(ROOT), "") for line, _ in VALUES])
def test_a_wrong_value_is_refused_with_what_is_expected(command: Command, tmp_path, line: str, said: str):
    write_images(tmp_path / "images", 1)
    save(tmp_path / "adapter.safetensors")
    assert said in refused(command(line))
