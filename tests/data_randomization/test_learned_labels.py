import pytest
import torch
from torch import nn

from lightning_sanity.data_randomization import Memorization, memorization
from lightning_sanity.data_randomization.learned_labels import (
    accuracy,
    chance,
    confusion,
    confusion_of,
    independent_samples,
)


class Says(nn.Module):
    """Says the class that is written into the first pixel."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * nn.functional.one_hot(x[:, 0].long(), 4).float()


def test_accuracies_are_those_of_the_labels_each_model_was_given():
    labels = torch.arange(400) % 4
    permuted = labels[torch.randperm(400)]
    told = labels[:, None].float()
    found = memorization([Says()], [Says()], (told, labels), [permuted], (told, labels))
    assert found.true_train == (1.0,)
    assert found.permuted_train == pytest.approx((float((labels == permuted).float().mean()),))
    assert found.permuted_test == (1.0,)
    assert found.chance == pytest.approx(0.25)


def test_confusion_counts_labels_by_rows_and_restores_the_mode():
    model = Says().train()
    counts = confusion_of(model, torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 2]), rows=2)
    assert counts.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert accuracy(counts) == pytest.approx(2 / 3)
    assert model.training


def test_a_single_score_means_class_one_where_positive():
    counts = confusion(torch.tensor([0.3, -0.2, 2.0]), torch.tensor([1, 0, 0]))
    assert counts.tolist() == [[1, 1], [0, 1]]


def test_chance_follows_the_frequencies_of_the_classes():
    trained = torch.diag(torch.tensor([90, 10]))
    assert chance(trained, torch.diag(torch.tensor([50, 50]))) == pytest.approx(0.5)
    assert chance(trained, trained) == pytest.approx(0.82)


def test_independent_predictions_count_in_full_and_clustered_ones_do_not():
    torch.manual_seed(1)
    labels, guesses = torch.randint(10, (2, 4000))
    counts = torch.bincount(labels * 10 + guesses, minlength=100).reshape(10, 10)
    assert independent_samples(counts) > 2500
    assert independent_samples(25 * torch.bincount((labels * 10 + guesses)[:160], minlength=100).reshape(10, 10)) < 300


def test_the_chance_interval_holds_models_that_know_nothing():
    known = Memorization((1,), (1, 1, 1), (0.1, 0.1, 0.1), 400, 0.1)
    low, high = known.chance_interval()
    hits = torch.distributions.Binomial(400, torch.tensor(0.1)).sample((20000,)) / 400
    assert ((hits < low) | (hits > high)).double().mean() < 0.01 / 3 + 0.002
    assert known.unmet(1, 3, 0.95) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"true_train": (1.2,)}, r"true_train must hold accuracies between 0 and 1, not 1\.2"),
        ({"chance": 0.0}, "chance must lie between 0 and 1"),
        ({"test_samples": 0}, "test_samples must be at least 1"),
    ],
)
def test_numbers_that_are_no_accuracies_are_refused(changes, message):
    given = {"true_train": (1,), "permuted_train": (1,), "permuted_test": (0.1,), "test_samples": 9, "chance": 0.1}
    with pytest.raises(ValueError, match=message):
        Memorization(**{**given, **changes})


def test_labels_and_models_must_agree_in_number():
    told, labels = torch.zeros(4, 1), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="2 permuted-label models need as many permuted_labels, not 1"):
        memorization([Says()], [Says(), Says()], (told, labels), [labels], (told, labels))
    with pytest.raises(ValueError, match="4 inputs need as many labels, not 3"):
        memorization([Says()], [Says()], (told, labels[:3]), [labels], (told, labels))
