"""What is compared: every method is there, trains, and is stored and merged as it would be in use."""

import copy

import pytest
import torch

from vpeft.bench.cases import CASES, PAIRS, check, head_of, merged, resolved, stored
from vpeft.bench.inference import inference
from vpeft.bench.setting import Setting
from vpeft.bench.step import Step, body_of
from vpeft.checkpoint import save_adapter
from vpeft.methods import METHODS
from vpeft.packed.sharing import twin
from vpeft.tuned import Tuned

TINY = Setting("test_vit.r160_in1k", batch=2, threads=1, inference_batch=1)
BF16 = Setting("test_vit.r160_in1k", batch=2, precision="bf16-frozen", threads=1)


@pytest.fixture(scope="module")
def body():
    return body_of(TINY)


def test_every_method_is_a_case():
    assert {spec["name"] for spec in CASES.values() if "name" in spec} == set(METHODS)
    assert set(PAIRS) | set(PAIRS.values()) <= set(CASES)
    assert {spec["peft"] for spec in CASES.values() if "peft" in spec} == {"LoraConfig", "IA3Config", "LNTuningConfig"}


@pytest.mark.parametrize("case", CASES)
def test_a_step_changes_what_learns_and_nothing_that_is_shared(case, body):
    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    step = Step(TINY, CASES[case], body)
    start = [parameter.detach().clone() for parameter in step.learned]
    seconds = step()
    assert all(value > 0 for value in seconds)
    assert any((a != b).any() for a, b in zip(start, step.learned, strict=True))
    assert all(parameter.grad is None for parameter in step.learned)
    after = body.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("case", "count"), [("linear", 0), ("lora-qkv", 6 * 8 * 64 * 4), ("full", None)])
def test_trained_is_without_the_head(case, count, body):
    step = Step(TINY, CASES[case], body)
    expected = sum(p.numel() for p in body.model.parameters()) if count is None else count
    assert sum(p.numel() for p in step.trained) == expected
    assert len(step.learned) == len(step.trained) + len(list(head_of(step.model).parameters()))


@pytest.mark.parametrize("ours", ["lora-qkv", "lora-all", "dora-qkv", "layernorm"])
def test_a_pair_trains_as_many_parameters(ours, body):
    counts = {sum(p.numel() for p in Step(TINY, CASES[case], body).trained) for case in (ours, PAIRS[ours])}
    assert len(counts) == 1


@pytest.mark.parametrize("case", ["full", "lora-qkv", "bi-adapter-32", "linear"])
def test_stored_bytes_are_the_size_of_the_adapters_file(case, body, tmp_path, monkeypatch):
    step = Step(TINY, CASES[case], body)
    written = []

    def save(path, tuned, manifest):
        save_adapter(path, tuned, manifest)
        written.append(path.stat().st_size)

    monkeypatch.setattr("vpeft.bench.cases.save_adapter", save)
    size, head = stored(step.model, CASES[case])
    assert [size] == written
    assert head == 4 * (body.dim * 100 + 100)
    assert size > head


def test_what_peft_stores_is_counted(body):
    step = Step(TINY, CASES["peft-lora-qkv"], body)
    size, head = stored(step.model, CASES["peft-lora-qkv"])
    assert head == 0
    assert size > 4 * sum(p.numel() for p in step.trained)


@pytest.mark.parametrize("case", ["lora-all", "ssf", "ia3", "repadapter-8", "full", *PAIRS.values()])
def test_merged_inference_equals_that_with_the_adapter(case, body):
    found = inference(TINY, CASES[case], body, 1)
    assert found["differs"] < 1e-5
    assert {name: len(values) for name, values in found["seconds"].items()} == dict.fromkeys(
        ("plain", "adapted", "merged"), 1
    )


def test_a_method_that_cannot_be_merged_says_so(body):
    found = inference(TINY, CASES["vqt-1"], body, 1)
    assert "cannot be merged" in found["not_merged"]
    assert set(found["seconds"]) == {"plain", "adapted"}


def test_merging_changes_the_model(body):
    step = Step(TINY, CASES["lora-all"], body)
    with torch.no_grad():
        for parameter in step.trained:
            parameter.add_(0.1)
    vendor = merged(step.model, copy.deepcopy(twin(body).model))
    changed = [name for name, tensor in vendor.state_dict().items() if not torch.equal(tensor, _of(body, name))]
    assert any("qkv" in name for name in changed)


def _of(body, name):
    return body.model.state_dict()[name]


@pytest.mark.parametrize("case", ["lora-qkv", "dora", "peft-lora-qkv"])
def test_frozen_weights_in_bf16_are_each_cases_own(case, body):
    step = Step(BF16, CASES[case], body)
    step()
    assert {parameter.dtype for parameter in body.parameters()} == {torch.float32}
    kept = {parameter.dtype for parameter in step.body.parameters()}
    assert kept == {torch.float32, torch.bfloat16}
    assert {parameter.dtype for parameter in step.trained} == {torch.float32}
    assert isinstance(step.model, Tuned) == (not case.startswith("peft"))


def test_a_case_without_frozen_weights_to_store_is_no_second_row_of_bf16(body):
    with pytest.raises(ValueError, match="finds nothing to store"):
        Step(BF16, CASES["full"], body)


def test_a_case_may_have_a_precision_of_its_own():
    spec, setting = resolved("lora-qkv@bf16", TINY)
    assert (spec, setting.precision) == (CASES["lora-qkv"], "bf16")
    assert resolved("lora-qkv", TINY)[1] == TINY


def test_unknown_cases_and_settings_are_named():
    with pytest.raises(ValueError, match="there are no cases lora; there are full, linear"):
        check(["lora", "full"])
    with pytest.raises(ValueError, match="precision is 'fp8'; there are fp32, bf16, bf16-frozen"):
        check(["full@fp8"])
    with pytest.raises(ValueError, match="batch is 0; at least 1"):
        Setting(batch=0)
