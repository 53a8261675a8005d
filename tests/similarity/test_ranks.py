"""Ranks with ties against scipy, inversions against counting."""

import pytest
import torch
from scipy import stats

from lightning_sanity import similarity as sim
from lightning_sanity.similarity.ranks import inversions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_ranks_match_scipy_with_ties(dtype):
    values = torch.randint(-5, 5, (4, 99), generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(
        sim.average_ranks(values), torch.tensor(stats.rankdata(values.numpy(), axis=1)).float(), rtol=0, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_average_ranks_leave_out_masked_values(dtype):
    values = torch.tensor([[3.0, 1.0, 3.0, -2.0, 9.0]], dtype=dtype)
    mask = torch.tensor([[True, True, True, False, False]])
    assert sim.average_ranks(values, mask).tolist() == [[2.5, 1.0, 2.5, 0.0, 0.0]]


def test_average_ranks_of_non_finite_rows_are_nan():
    ranks = sim.average_ranks(torch.tensor([[1.0, torch.nan], [1.0, torch.inf], [1.0, 2.0]]))
    assert ranks[:2].isnan().all()
    assert ranks[2].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 7, 16, 33])
def test_inversions_match_counting_pairs(count):
    rows = torch.stack([torch.randperm(count, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    expected = torch.triu(rows[:, :, None] > rows[:, None, :], diagonal=1).sum(dim=(1, 2))
    assert torch.equal(inversions(rows), expected)
