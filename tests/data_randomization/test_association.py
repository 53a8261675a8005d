"""Labels that are seldom the true ones may still say all about them."""

import math

import pytest
import torch
from scipy.stats import chi2_contingency

from lightning_sanity.data_randomization.association import association, table_association

FREQUENCIES = {
    "two": [1.0] * 2,
    "ten": [1.0] * 10,
    "a hundred": [1.0] * 100,
    "95 to 5": [0.95, 0.05],
    "few of many": [1 / (k + 1) for k in range(50)],
}


@pytest.mark.parametrize("frequencies", FREQUENCIES.values(), ids=FREQUENCIES)
def test_exchanged_labels_are_not_called_related(frequencies):
    rng = torch.Generator().manual_seed(1)
    true = torch.multinomial(torch.tensor(frequencies), 400, replacement=True, generator=rng)
    draws = [table_association(torch.stack([true, true[torch.randperm(400, generator=rng)]])) for _ in range(300)]
    assert min(draws) > 1e-6
    assert 0.01 < (torch.tensor(draws) < 0.05).double().mean() < 0.1


def test_many_samples_of_few_classes_agree_with_chi_squared():
    rng = torch.Generator().manual_seed(0)
    classes = torch.randint(4, (2, 5000), generator=rng)
    classes[1, :250] = classes[0, :250]
    table = torch.bincount(classes[0] * 4 + classes[1], minlength=16).reshape(4, 4)
    assert table_association(classes) == pytest.approx(chi2_contingency(table.numpy()).pvalue, rel=0.02)


X = torch.arange(200)
RELATED = {
    "renamed classes": (X % 10, (X % 10 + 3) % 10),
    "exchanged within pairs of classes": (X % 10, X % 10 // 2 * 2 + X // 10 % 2),
    "numbers with noise": (X.float(), X + torch.randn(200, generator=torch.Generator().manual_seed(0)) * 30),
    "reversed numbers": (X.float(), -X.float()),
    "one of two columns": (torch.stack([X, X * 7 % 200], 1).float(), torch.stack([X + 0.5, X * 11 % 200], 1)),
}


@pytest.mark.parametrize("kind", RELATED)
def test_labels_that_follow_the_true_ones_are_found_out(kind):
    true, given = (each.tolist() for each in RELATED[kind])
    assert association(true, given) < 1e-9


def test_what_cannot_be_compared_is_unknown():
    masks = torch.rand(20, 1, 16, 16)
    assert math.isnan(association(list(masks), list(masks.flip(0))))
    assert math.isnan(association([0] * 20, [0] * 20))
