"""Samples that meet within a network: shared walks give the plain loop's curves, or are not walked."""

import pytest
import torch
from made_mixing import WAYS, Mixing
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.engine.full_batch import FullBatch
from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.explanation.dependence import in_one
from lightning_sanity.explanation.maps import Explanation
from lightning_sanity.randomization import units

FEW = {"methods": "gradient", "trials": 2, "repeats": 1, "controls": False, "progress": False, "pictures": False}


def curve(model, inputs, **options):
    result = parameter_randomization_test(model, inputs, torch.arange(len(inputs)) % 3, **FEW, **options)
    return result.curves["gradient", "spearman"].values, result


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_is_mixed_has_the_curves_of_the_plain_loop(way):
    model, inputs = Mixing(WAYS[way]).eval(), torch.randn(6, 10)
    values, result = curve(model, inputs)
    expected, _ = curve(model, inputs, engine="plain")
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5, equal_nan=True)
    assert result.engine["gradient"] == "plain"
    assert any("depend on the other samples of the batch" in note for note in result.coverage.notes)


@pytest.mark.parametrize("way", ["turned round", "rolled by half", "both halves", "pairs", "the one before"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("samples", [2, 4, 6])
def test_two_runs_of_other_sizes_show_who_meets(way, at, samples):
    model, inputs = Mixing(WAYS[way], at).eval(), torch.randn(samples, 10)
    with pytest.raises((NotTraceable, RuntimeError)):
        FullBatch(model, inputs, units(model, inputs), model)


@pytest.mark.parametrize("samples", [2, 3, 5])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_network_that_mixes_nothing_is_walked(samples, layers):
    model = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(10, 10), nn.Tanh()))).eval()
    inputs = torch.randn(samples, 10)
    values, result = curve(model, inputs)
    torch.testing.assert_close(values, curve(model, inputs, engine="plain")[0], rtol=0, atol=1e-5, equal_nan=True)
    assert result.engine["gradient"] == "two_stream"


def test_samples_that_meet_behind_the_first_check_are_found_by_the_proof(monkeypatch):
    """Many rows at once are turned round, few are not: only the maps themselves show it."""
    mix = lambda h: h + h.flip(0) if len(h) > 8 else h  # noqa: E731
    model, inputs = Mixing(mix).eval(), torch.randn(4, 10)
    values, _ = curve(model, inputs)
    torch.testing.assert_close(values, curve(model, inputs, engine="plain")[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", ["less the mean", "turned round", "batch statistics"])
def test_limits_do_not_split_what_belongs_together(way):
    model, inputs = Mixing(WAYS[way]).eval(), torch.randn(6, 10)
    whole, _ = curve(model, inputs)
    for limit in ({"max_batch": 2}, {"max_memory": 2**24}):
        values, result = curve(model, inputs, **limit)
        assert torch.equal(values, whole)
        assert any(f"it was not split, whatever {next(iter(limit))} said" in note for note in result.coverage.notes)


def test_altered_copies_of_a_batch_that_belongs_together_run_one_by_one():
    seen = []

    def mix(h):
        seen.append(len(h))
        return h - h.mean(0)

    model, inputs = Mixing(mix).eval(), torch.randn(6, 10)
    options = FEW | {"methods": ["occlusion", "integrated_gradients", "smoothgrad", "rise", "lime"]}
    parameter_randomization_test(model, inputs, torch.arange(6) % 3, **options)
    assert set(seen) <= {6, 4, 3, 2}  # the batch, and the few rows by which the model was made known


# ---------------------------------------------------------------------------------------------------- what is not mixed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("samples", [1, 5, 8])
def test_every_way_of_mixing_is_seen(way, samples):
    model = Mixing(WAYS[way]).eval()
    assert in_one(Explanation(model, torch.randn(samples, 10), None))


def test_what_has_no_gradient_is_seen_by_its_outputs():
    def ranked(h):
        return h + h.argsort(0).float()

    model, inputs = Mixing(ranked).eval(), torch.randn(8, 10)
    assert in_one(Explanation(model, inputs, None), model(inputs))


def test_a_graph_for_one_number_of_nodes_is_seen_whole():
    near = torch.rand(7, 7).softmax(1)
    model = Mixing(lambda h: near @ h).eval()
    assert in_one(Explanation(model, torch.randn(7, 10), None))
    alone = Mixing(lambda h: h + torch.zeros(7, 1)).eval()
    assert not in_one(Explanation(alone, torch.randn(7, 10), None))
