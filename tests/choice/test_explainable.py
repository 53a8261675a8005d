"""Nothing to explain is said before any method runs, and never of a network that knows something."""

import math

import pytest
import torch
from torch import nn

from lightning_sanity.choice.explainable import nothing_to_explain, untouched_statistics
from tests.made_choices import network, probe, trained


def outputs(model, samples=32):
    with torch.no_grad():
        return model(probe(samples)[0])


def test_a_trained_network_has_something_to_explain_with_labels_and_without():
    assert nothing_to_explain(trained(), outputs(trained()), None) is None
    assert nothing_to_explain(trained(), outputs(trained()), probe(32)[1]) is None


@pytest.mark.parametrize("seed", range(20))
def test_an_untrained_one_has_not(seed):
    model = network(seed)
    assert nothing_to_explain(model, outputs(model), None) is not None
    assert nothing_to_explain(model, outputs(model), probe(32)[1]) is not None


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (torch.arange(20) % 4, r"one for each of the 16 samples, not of shape \(20,\)"),
        (torch.arange(14) % 4, "one for each of the 16 samples"),
        (torch.full((16,), 12), "label 12 is no class of the model, which gives 10 scores"),
        (-torch.ones(16, dtype=torch.long), "label -1 is no class"),
    ],
)
def test_labels_that_cannot_be_the_samples_are_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        nothing_to_explain(nn.Identity(), torch.eye(16, 10), labels)


def test_what_probabilities_tell_is_mutual_information():
    """Four certain classes tell log 4 nats, a certain one none, half certain ones what the formula says."""
    certain = 50 * torch.eye(4)
    assert nothing_to_explain(nn.Identity(), certain, None) is None
    found = nothing_to_explain(nn.Identity(), torch.zeros(4, 4), None)
    assert "0.0000 nats" in found
    assert f"of {math.log(4):.2f}" in found


def test_predictions_that_only_name_the_frequent_class_know_nothing():
    labels = torch.tensor([0] * 15 + [1] * 5)
    scores = torch.tensor([[5.0, 0.0]]).repeat(20, 1)
    assert "15 of 20 labels" in nothing_to_explain(nn.Identity(), scores, labels)


def test_one_class_of_labels_says_nothing_about_the_model():
    scores = torch.tensor([[5.0, 0.0]]).repeat(20, 1)
    assert nothing_to_explain(nn.Identity(), scores, torch.zeros(20, dtype=torch.long)) is None


def test_statistics_of_new_layers_are_those_of_an_untrained_network():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    assert "never trained" in untouched_statistics(model)
    model.train()(torch.randn(4, 1, 5, 5))
    assert untouched_statistics(model) is None
    assert untouched_statistics(nn.Linear(2, 2)) is None


def test_regression_is_left_to_the_user():
    assert nothing_to_explain(nn.Linear(2, 1), torch.zeros(8, 1), None) is None
