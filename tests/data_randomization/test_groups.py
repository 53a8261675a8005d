"""Models trained on true and on random labels: what stands for them, and whether they can be told apart."""

import copy

import pytest
import torch
from torch import nn

from lightning_sanity.data_randomization.groups import Groups


def linear(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(3, 4)


def test_one_model_is_a_group():
    groups = Groups.of(linear(0), [linear(1), linear(2)])
    assert groups.sizes == (1, 2)
    assert groups.all == [*groups.true, *groups.permuted]


def test_an_empty_group_is_named():
    with pytest.raises(ValueError, match="random_label_model is empty: pass a model or several"):
        Groups.of(linear(0), [])


def test_what_is_no_model_is_named():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module or several, not str"):
        Groups.of(["resnet18"], linear(0))


def test_the_mean_of_probabilities_stands_for_several_models():
    groups = Groups.of([linear(0), linear(1)], linear(2))
    outputs = torch.randn(3, 5, 4)
    assert torch.equal(groups.prediction(outputs), outputs[:2].softmax(2).mean(0))
    assert torch.equal(Groups.of(linear(0), linear(1)).prediction(outputs[1:]), outputs[1])


def test_a_model_of_both_groups_is_found():
    same = linear(0)
    found = Groups.of([linear(1), same], [copy.deepcopy(same)]).shared()
    assert found == "random-label model 0 is true-label model 1: their weights differ by 0"
    assert Groups.of(linear(0), linear(1)).shared() is None


def test_predictions_that_agree_more_than_by_chance_are_found():
    groups, classes = Groups.of(linear(0), linear(1)), torch.arange(200) % 10
    scores = nn.functional.one_hot(classes, 10).float()
    unrelated = nn.functional.one_hot(classes[torch.randperm(200)], 10).float()
    assert groups.alike(torch.stack([scores, unrelated])) is None
    assert "for 200 of 200 samples (20 expected): were its labels permuted?" in groups.alike(torch.stack([scores] * 2))
