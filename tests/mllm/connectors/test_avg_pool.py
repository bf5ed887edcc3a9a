"""Average pooling of the patch grid."""

import pytest
import torch

from mllm.connectors.avg_pool import AvgPool
from tests.mllm.shapes import shapes


def test_a_token_is_the_mean_of_its_patches_behind_the_prefix():
    pool = AvgPool(*shapes(3, 8, grid=(4, 6), prefix=1), tokens=4, depth=1)
    x = torch.randn(2, 25, 3)
    patches = x[:, 1:].view(2, 4, 6, 3)
    means = [patches[:, i : i + 2, j : j + 3].mean(dim=(1, 2)) for i in (0, 2) for j in (0, 3)]
    torch.testing.assert_close(pool(x), pool.layers(torch.stack(means, dim=1)))


def test_cells_overlap_where_the_tokens_do_not_divide_the_grid():
    pool = AvgPool(*shapes(3, 8, grid=(5, 5)), tokens=4, depth=1)
    x = torch.randn(1, 25, 3)
    first = x.view(5, 5, 3)[:3, :3].mean(dim=(0, 1))
    torch.testing.assert_close(pool(x)[0, 0], pool.layers(first))


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (10, "tokens is 10, which is not a square; 9 and 16 are"),
        (0, "tokens is 0, which is not a square; 1 and 4 are"),
        (36, "tokens is 36, 6 a side, and the grid has 5 x 7 patches; at most 25 fit"),
    ],
)
def test_tokens_that_are_no_square_or_do_not_fit_are_refused(tokens, words):
    with pytest.raises(ValueError, match=words):
        AvgPool(*shapes(3, 8, grid=(5, 7)), tokens=tokens)
