"""The measures write down what they find at once, and one case that fails stops no other."""

import json

import pytest

from vpeft.bench import measure
from vpeft.bench.limits import distances
from vpeft.bench.record import Record, read
from vpeft.bench.setting import Setting
from vpeft.bench.step import Step
from vpeft.bench.turns import Spread

TINY = Setting("test_vit.r160_in1k", batch=2, threads=1, inference_batch=1)


@pytest.fixture
def record(tmp_path):
    return Record(tmp_path / "found.json", "methods", TINY)


@pytest.fixture
def here(monkeypatch):
    """What would have a process of its own runs in this one."""
    monkeypatch.setattr(measure, "fresh", lambda run, *arguments: run(*arguments))


def quiet(text):
    pass


def test_memory_has_counts_bytes_and_shares(record, here):
    measure.memory(TINY, ["full", "lora-qkv", "vqt-1", "partial-1", "dtl", "peft-lora-qkv"], 1, record, quiet)
    found = read(record.path)["memory"]
    assert found["full"]["blocks_backward"] == found["full"]["weights_trained"] == 1
    assert (found["lora-qkv"]["blocks_backward"], found["lora-qkv"]["weights_trained"]) == (1, 0)
    assert found["vqt-1"]["blocks_backward"] == 0
    assert found["partial-1"]["blocks_backward"] == pytest.approx(1 / 6)
    assert found["partial-1"]["weights_trained"] == pytest.approx(1 / 6)
    assert found["dtl"]["blocks_backward"] == 0.5
    assert found["peft-lora-qkv"]["weights_trained"] == 0
    forward, backward, optimiser = found["lora-qkv"]["operations"]
    assert 0 < forward < backward * 1.2
    assert optimiser == 0
    assert found["full"]["bytes"][2] > found["full"]["trained_bytes"]
    assert found["lora-qkv"]["file_bytes"] > found["lora-qkv"]["head_bytes"] + found["lora-qkv"]["trained_bytes"]
    limits = distances(found, dict.fromkeys(found, Spread(0.8, 0.8, 0.8)))
    shares = {case: one.limit for case, one in limits.items()}
    assert shares == pytest.approx(
        {"vqt-1": 1 / 3, "partial-1": 4 / 9, "dtl": 1 / 2, "lora-qkv": 2 / 3, "peft-lora-qkv": 2 / 3}
    )
    assert next(iter(limits)) == "vqt-1"
    assert limits["lora-qkv"].distance == pytest.approx(1.2)
    assert limits["lora-qkv"].own == pytest.approx(0.8 / limits["lora-qkv"].operations)


def test_memory_is_of_a_process_of_its_own(record):
    measure.memory(TINY, ["linear"], 3, record, quiet)
    found = read(record.path)["memory"]["linear"]
    assert found["memory"] == sorted(found["peaks"])[1] > 2**20
    assert 0 < found["tensors"] < found["memory"]


def test_times_of_a_session_stand_round_by_round_with_full(record):
    said = []
    measure.step_time(TINY, ["linear", "vqt-1@bf16"], 2, record, said.append)
    (session,) = read(record.path)["time"]
    assert list(session["seconds"]) == ["full", "linear", "vqt-1@bf16"]
    for parts in session["seconds"].values():
        assert {name: len(values) for name, values in parts.items()} == {"forward": 2, "backward": 2, "optimiser": 2}
    assert len(said) == 2


def test_an_interrupted_session_keeps_its_rounds(record, monkeypatch):
    steps, calls = Step.__call__, []

    def interrupted(self):
        calls.append(self)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return steps(self)

    monkeypatch.setattr(Step, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure.step_time(TINY, ["linear"], 5, record, quiet)
    (session,) = read(record.path)["time"]
    assert {case: len(parts["forward"]) for case, parts in session["seconds"].items()} == {"full": 1, "linear": 1}


def test_a_case_that_cannot_be_built_stops_no_other(record):
    measure.step_time(Setting("test_vit.r160_in1k", 2, 32, threads=1), ["vp-30", "linear"], 1, record, quiet)
    found = read(record.path)
    assert list(found["time"][0]["seconds"]) == ["full", "linear"]
    assert "ValueError: vp" in found["failed"]["time"]["vp-30"]


def test_a_case_that_does_not_compile_is_reported_with_its_reason(record, here, monkeypatch):
    def fails(self):
        raise RuntimeError("no compiler is there\nfurther lines")

    monkeypatch.setattr("torch.nn.Module.compile", fails)
    measure.compilation(TINY, ["lora-qkv", "linear"], 1, record, quiet)
    found = read(record.path)
    assert found["failed"]["compile"] == dict.fromkeys(("lora-qkv", "linear"), "RuntimeError: no compiler is there")
    assert "compile" not in found


def test_what_compiles_is_timed_beside_what_is_not(record, here, monkeypatch):
    monkeypatch.setattr("torch.nn.Module.compile", lambda self: None)  # compiling itself takes a minute
    measure.compilation(TINY, ["linear"], 2, record, quiet)
    found = read(record.path)["compile"]["linear"]
    assert {name: len(values) for name, values in found["seconds"].items()} == {"eager": 2, "compiled": 2}
    assert found["loss_differs"] == 0
    assert found["compiling"] >= 0


def test_inference_is_written_case_by_case(record):
    measure.inference_time(TINY, ["lora-qkv", "vqt-1"], 1, record, quiet)
    found = json.loads(record.path.read_text())["inference"]
    assert list(found) == ["lora-qkv", "vqt-1"]
    assert found["lora-qkv"]["differs"] < 1e-5


def test_a_profile_counts_what_a_step_does_and_times_it(record, here):
    measure.memory(TINY, ["lora-qkv"], 1, record, quiet)
    measure.profiles(TINY, ["lora-qkv"], 2, record, quiet)
    found = read(record.path)
    kinds = found["profile"]["lora-qkv"]["kinds"]
    counted = found["memory"]["lora-qkv"]
    assert sum(kind["operations"] for kind in kinds.values()) == sum(counted["operations"])
    assert sum(kind["bytes"] for kind in kinds.values()) == sum(counted["bytes"])
    assert all(len(kind["seconds"]) == 2 and min(kind["seconds"]) > 0 for kind in kinds.values())
    middle = [sum(kind["seconds"]) for kind in kinds.values()]  # of two rounds the median is the mean
    assert middle == sorted(middle, reverse=True)
