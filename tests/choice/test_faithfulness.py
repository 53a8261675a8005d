"""The columns: what is known exactly of linear models, and what no map may gain by."""

import pytest
import torch
from torch import nn

from lightning_sanity.attribution import resolve
from lightning_sanity.choice.faithfulness import METRICS, regions_of, removals, scored, yardstick
from lightning_sanity.choice.subject import subject
from lightning_sanity.explanation.maps import Maps
from lightning_sanity.explanation.request import asked_of
from lightning_sanity.parameter_randomization.options import settled
from lightning_sanity.quality import deletion_auc, insertion_auc


def linear(classes=2, side=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(side * side, classes)).eval()


def measured(model, inputs, act, masks=None, target=None):
    """``act(yardstick)`` inside the subject of a model."""
    given = settled({}, "a test")
    asked = asked_of(model, inputs, target, given)
    with subject(model, asked, {"gradient": resolve("gradient")}, given, None) as on:
        return act(yardstick(on, masks))


def images(samples=8, side=8):
    return torch.rand(samples, 1, side, side, generator=torch.Generator().manual_seed(2))


def contributions(model, inputs, hidden):
    """What every pixel of a linear model adds to its predicted class beside its replacement."""
    weights = model[1].weight[model(inputs).argmax(1)].reshape(inputs.shape)
    return (weights * (inputs - hidden)).detach()


def test_the_exact_contributions_of_a_linear_model_have_fidelity_one():
    model, inputs = linear(), images()

    def act(by):
        found = []
        for name, hidden in by.hidden.items():
            only = type(by)(**{**vars(by), "lost": {name: by.lost[name]}})
            found.append(only.fidelity(contributions(model, inputs, hidden)[:, 0]))
        return torch.stack(found)

    assert torch.allclose(measured(model, inputs, act), torch.ones(3, len(inputs), dtype=torch.double), atol=1e-4)


def test_fidelity_is_what_infidelity_leaves_of_the_best_scaled_and_shifted_map():
    """1 - r^2 is the normalised infidelity of centred maps and losses: both are residuals of a line."""
    model, inputs = linear(), images()
    torch.manual_seed(3)
    maps = torch.randn(8, 8, 8)

    def act(by):
        only = type(by)(**{**vars(by), "lost": {"mean": by.lost["mean"]}})
        said = (by.regions.float() @ maps.flatten(1).T).double()
        return only.fidelity(maps), said, by.lost["mean"], by.hidden["mean"]

    found, said, lost, _ = measured(model, inputs, act)
    slope = ((said - said.mean(0)) * (lost - lost.mean(0))).sum(0) / (said - said.mean(0)).square().sum(0)
    residual = lost - lost.mean(0) - slope * (said - said.mean(0))
    unexplained = residual.square().sum(0) / (lost - lost.mean(0)).square().sum(0)
    assert torch.allclose(1 - found.square(), unexplained, atol=1e-8)


def test_deletion_is_insertion_less_deletion_over_the_removals():
    model, inputs = linear(), images()
    torch.manual_seed(3)
    maps = torch.randn(8, 8, 8)
    target = model(inputs).argmax(1)

    def act(by):
        return by.deletion(maps), by.hidden

    found, removed = measured(model, inputs, act)
    each = [
        insertion_auc(model, inputs, maps, target, baseline=hidden, steps=8)
        - deletion_auc(model, inputs, maps, target, baseline=hidden, steps=8)
        for hidden in removed.values()
    ]
    assert torch.allclose(found, torch.stack(each).mean(0), atol=1e-6)


def test_noise_scores_nothing_on_average():
    model, inputs = linear(), images(64)

    def act(by):
        draw = torch.Generator().manual_seed(5)
        noise = torch.randn(64, 8, 8, generator=draw)
        return scored(by, Maps(noise, noise.abs()), METRICS, 0)[0]

    found = measured(model, inputs, act)
    for metric, values in found.items():
        assert abs(float(values.mean())) < 3 * float(values.std()) / 8, metric


def test_a_constant_map_has_no_score():
    def act(by):
        return scored(by, Maps(torch.ones(8, 8, 8), torch.ones(8, 8, 8)), METRICS, 0)[0]

    assert all(bool(values.isnan().all()) for values in measured(linear(), images(), act).values())


def test_the_reading_that_serves_a_map_is_found_on_the_other_half():
    """Signed contributions say all of a linear model; their magnitudes do not."""
    model, inputs = linear(), images(16)

    def act(by):
        signed = contributions(model, inputs, by.hidden["mean"])[:, 0]
        return scored(by, Maps(signed, signed.abs()), ("fidelity",), 0)

    found, reading = measured(model, inputs, act)
    assert reading == "signed"
    assert float(found["fidelity"].mean()) > 0.5


@pytest.mark.parametrize("sides", [(8, 8), (20,), (30,), (5,), (6, 7, 8), (2,)])
def test_regions_are_of_one_size_and_neither_empty_nor_everything(sides):
    regions = regions_of(sides, 0)
    sizes = regions.sum(1).unique()
    assert len(sizes) == 1
    assert 0 < int(sizes) < regions.shape[1]


def test_columns_of_a_table_lose_their_value_to_their_own_mean_and_to_other_samples():
    table = torch.randn(10, 4)
    found = removals(table, 0)
    assert torch.allclose(found["mean"][0], table.mean(0))
    assert torch.equal(found["others"].sort(0).values, table.sort(0).values)
    assert not bool((found["others"] == table).any())


def test_a_mask_must_fit():
    with pytest.raises(ValueError, match="masks must say for every position"):
        measured(linear(), images(), lambda by: None, masks=torch.ones(8, 3, 3))


def test_localization_is_the_overlap_with_the_mask():
    masks = torch.zeros(8, 8, 8)
    masks[:, 2:4, 2:4] = 1

    def act(by):
        little = 0.01 * torch.rand(8, 8, 8)
        return by.localization(masks + little), by.localization(1 - masks + little)

    right, wrong = measured(linear(), images(), act, masks=masks)
    assert bool((right == 1).all())
    assert bool((wrong == 0).all())
