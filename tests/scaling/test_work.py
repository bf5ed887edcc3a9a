"""What is counted of a step, against formulas; and the roofline, by hand."""

import pytest

from vpeft.scaling.work import Device, Operation, Work, count

BACKBONE = "vit_tiny_patch16_224"
TOKENS, DIM, DEPTH, PATCH = 197, 192, 12, 16 * 16 * 3


def _forward() -> int:
    """Operations of one image: two a multiply-add, in products and attention, and a head of 100 classes."""
    block = 2 * TOKENS * 12 * DIM**2 + 4 * TOKENS**2 * DIM
    return DEPTH * block + 2 * (TOKENS - 1) * PATCH * DIM + 2 * DIM * 100


def test_evaluation_costs_what_the_formula_of_a_vit_says() -> None:
    assert count({"name": "linear"}, BACKBONE, 4, train=False).flops == 4 * _forward()


def test_a_linear_probe_goes_back_through_its_head_alone() -> None:
    assert count({"name": "linear"}, BACKBONE, 4, train=True).flops == 4 * (_forward() + 2 * DIM * 100)


def test_full_fine_tuning_costs_three_forwards_and_recomputes_attention() -> None:
    # Flash attention's backward has five products where the forward has two; images need no gradient.
    work = count({"name": "full"}, BACKBONE, 2, train=True)
    attention = DEPTH * 4 * TOKENS**2 * DIM
    embedding = 2 * (TOKENS - 1) * PATCH * DIM
    assert work.flops == 2 * (3 * _forward() + attention // 2 - embedding)


def test_a_frozen_backbone_forms_no_weight_gradients() -> None:
    work = count({"name": "lora", "targets": ["qkv"], "shared_a": True}, BACKBONE, 2, train=True)
    attention, embedding = DEPTH * 4 * TOKENS**2 * DIM, 2 * (TOKENS - 1) * PATCH * DIM
    added = DEPTH * 2 * TOKENS * 8 * (DIM + 3 * DIM)  # A and B, forward
    into_the_first_block = 2 * TOKENS * DIM * (3 * DIM + 8)  # a gradient that nobody asks for
    frozen = 2 * _forward() + 3 * attention // 2 - embedding - into_the_first_block + 2 * DIM * 100
    assert work.flops == 2 * (frozen + 3 * added)


def test_the_count_grows_with_the_batch_and_the_operations_do_not() -> None:
    small, large = (count({"name": "vpt", "prompts": 2}, BACKBONE, batch, train=True) for batch in (2, 6))
    assert len(small.operations) == len(large.operations)
    assert large.flops == 3 * small.flops


def test_an_operation_takes_the_longest_of_arithmetic_memory_and_a_kernel() -> None:
    device = Device("slow", flops=100.0, bandwidth=10.0, product_share=0.5, memory_share=0.5, shortest=0.1)
    for operation, seconds in (
        (Operation("mm", 200, 1), 4.0),
        (Operation("add", 0, 30), 6.0),
        (Operation("tiny", 1, 0), 0.1),
    ):
        assert Work((operation,)).computed(device) == pytest.approx(seconds)


def test_a_step_waits_for_the_slower_of_host_and_device() -> None:
    work = Work((Operation("mm", 100, 0),) * 3)
    device = Device("even", 100.0, 1.0, product_share=1.0, memory_share=1.0, shortest=0.0, issue=0.5, loop=0.25)
    assert work.seconds(device) == pytest.approx(3.0)
    assert work.issued(device) == pytest.approx(1.75)
    assert Work((Operation("mm", 1, 0),) * 3).seconds(device) == pytest.approx(1.75)
