import pytest
import torch

from vpeft.metrics import evaluate


def test_accuracy_per_class_and_confusion():
    logits = torch.tensor([[4.0, 0, 0, 0], [0, 4, 0, 0], [0, 4, 0, 0], [0, 0, 4, 0]])
    result = evaluate(logits, torch.tensor([0, 0, 1, 2]))
    assert result.accuracy == 0.75
    assert result.per_class == [0.5, 1.0, 1.0, None]
    assert result.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert result.images == 4


def test_calibration_is_the_distance_of_confidence_from_accuracy():
    confident = torch.tensor([[0.9, 0.1]]).log().expand(10, 2)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert evaluate(confident, labels).ece == pytest.approx(0.3, abs=1e-6)


def test_loss_is_the_cross_entropy_of_half_precision_logits_too():
    logits, labels = torch.randn(20, 3).bfloat16(), torch.arange(20) % 3
    expected = torch.nn.functional.cross_entropy(logits.float(), labels).item()
    assert evaluate(logits, labels).loss == pytest.approx(expected, abs=1e-6)


def test_many_classes_need_no_quadratic_memory_per_image():
    torch.use_deterministic_algorithms(True)
    try:
        result = evaluate(torch.randn(2000, 1000), torch.randint(1000, (2000,)))
    finally:
        torch.use_deterministic_algorithms(False)
    assert result.images == 2000


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        evaluate(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
