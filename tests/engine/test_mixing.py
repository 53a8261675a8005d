"""Samples that meet within a network: shared walks give the plain loop's curves, or are not walked."""

import pytest
import torch
from made_mixing import WAYS, Mixing
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution import integrated_gradients, resolve, smoothgrad
from lightning_sanity.engine.full_batch import FullBatch
from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.explanation.dependence import alone, in_one
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

    model, inputs = Mixing(mix).eval(), torch.randn(5, 10)
    methods = ["occlusion", smoothgrad(3), integrated_gradients(3, tolerance=1.0)]
    parameter_randomization_test(model, inputs, torch.arange(5) % 3, **FEW | {"methods": methods, "trials": 1})
    assert set(seen) <= {5, 4, 3, 2}  # the batch, and the few rows by which the model was made known


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


# ----------------------------------------------------------------------------------------------- one score at a time


def own_slopes(model, inputs, target):
    """Every score's gradient at its own sample, the others held."""
    found = []
    for place in range(len(inputs)):
        value = inputs.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(value)[place, target[place]], value)
        found.append(slope[place])
    return torch.stack(found)


@pytest.mark.parametrize("way", ["turned round", "batch statistics", "similar samples", "a ring of nodes"])
def test_a_sample_is_explained_by_its_own_score(way):
    model, inputs, target = Mixing(WAYS[way]).eval(), torch.randn(6, 10), torch.arange(6) % 3
    methods, joint = alone({name: resolve(name) for name in ("gradient", "input_x_gradient")}, 6)
    assert joint == ()
    expected = own_slopes(model, inputs, target)
    torch.testing.assert_close(methods["gradient"](model, inputs, target), expected)
    torch.testing.assert_close(methods["input_x_gradient"](model, inputs, target), expected * inputs)
    together = resolve("gradient")(model, inputs, target)
    assert not torch.allclose(together, expected, rtol=1e-2)


def test_what_is_hidden_is_hidden_of_one_sample_alone():
    model, inputs, target = Mixing(WAYS["turned round"]).eval(), torch.randn(4, 10), torch.arange(4) % 3
    found = alone({"occlusion": resolve("occlusion")}, 4)[0]["occlusion"](model, inputs, target)
    model = model.requires_grad_(False)
    whole = model(inputs)
    for place in range(4):
        for feature in range(10):
            hidden = inputs.clone()
            hidden[place, feature] = 0
            lost = whole[place, target[place]] - model(hidden)[place, target[place]]
            assert found[place, feature] == pytest.approx(float(lost), abs=1e-5)


def test_integrated_gradients_stay_complete_for_each_sample():
    model, inputs, target = Mixing(WAYS["similar samples"]).eval(), torch.randn(5, 10), torch.arange(5) % 3
    method = alone({"ig": integrated_gradients(16)}, 5)[0]["ig"]
    assert method.refuses(model, inputs, target) is None
    found = method(model, inputs, target)
    for place in range(5):
        without = inputs.clone()
        without[place] = 0
        lost = (model(inputs) - model(without)).detach()[place, target[place]]
        assert float(found[place].sum()) == pytest.approx(float(lost), abs=1e-3)


def test_a_method_that_looks_inside_says_that_it_explains_all_scores():
    class Contrastive(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 6)

        def forward(self, x):
            h = nn.functional.normalize(self.head(self.stem(x).relu().mean((2, 3))), dim=1)
            return h @ h.T

    result = parameter_randomization_test(
        Contrastive().eval(),
        torch.rand(6, 1, 9, 9),
        torch.arange(6).roll(1),
        **FEW | {"methods": ["gradient", "gradcam"]},
    )
    assert "maps of gradcam show what a sample does to the scores of the whole batch" in result.coverage.notes


def test_a_graph_of_many_nodes_is_explained_by_all_scores_together():
    methods = {"gradient": resolve("gradient")}
    assert alone(methods, 65) == (methods, ("gradient",))
