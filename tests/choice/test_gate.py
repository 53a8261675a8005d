"""The test in front of the ranking: few trials first, and what is spent is counted."""

import itertools

import pytest
import torch

from lightning_sanity import Budget, parameter_randomization_test
from lightning_sanity.attribution import resolve
from lightning_sanity.choice.gate import explanations, looks, schedule
from lightning_sanity.choice.screening import screen
from lightning_sanity.choice.subject import subject
from lightning_sanity.explanation.request import asked_of
from lightning_sanity.parameter_randomization.options import settled
from tests.made_choices import probe, trained


@pytest.mark.parametrize("trials", [3, 4, 5, 10, 20, 50])
def test_a_schedule_adds_up_and_never_looks_before_three_trials(trials):
    seen = list(itertools.accumulate(schedule(trials)))
    assert seen[0] == 3
    assert seen[-1] == trials
    assert seen == sorted(set(seen))


def test_clear_methods_stop_early_and_trials_that_ran_are_those_of_a_longer_test():
    """Trial by trial the numbers are the whole test's: only their count differs."""
    images, labels = probe(16)
    given = {"labels": labels, "pictures": False, "progress": False, "methods": ["input_x_gradient", "gradient"]}
    raced = parameter_randomization_test(trained(), images, trials=looks(10), **given)
    whole = parameter_randomization_test(trained(), images, trials=10, **given)
    run = raced.settings["trials_run"]
    assert raced.settings["trials"] == 10
    assert run["input_x_gradient"] < 10
    for name, trials in run.items():
        for measure in ("spearman", "ssim"):
            short = raced.curves.get((name, measure))
            if short is not None and name in given["methods"]:
                same = whole.curves[name, measure].values[:trials]
                assert torch.allclose(short.values, same, atol=1e-4, equal_nan=True)
    made, all_of_them = explanations(raced, list(given["methods"]))
    assert made < all_of_them
    assert all_of_them == 2 * 16 * (1 + 3 + 10 * len(raced.units))


def test_a_budget_pays_for_the_first_names_that_fit():
    assert Budget(explanations=100).affordable(["a", "b", "c"], {}, 40) == ["a", "b"]
    assert Budget(seconds=1000).affordable(["a", "b"], {"a": 300.0, "b": 300.0}, 1, part=0.5) == ["a"]
    assert Budget().affordable(["a", "b"], {"a": 1e9}, 10**9) == ["a", "b"]


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"explanations": -1}, {"seconds": True}])
def test_a_budget_is_a_positive_number(wrong):
    with pytest.raises(ValueError, match="positive number"):
        Budget(**wrong)


def test_screening_runs_everything_and_says_why_some_do_not_apply():
    def raises(model, inputs, target):
        raise ValueError("no such luck")

    methods = {
        "raises": raises,
        "constant": lambda m, x, t: torch.ones_like(x),
        "undefined": lambda m, x, t: x * float("nan"),
        "shapeless": lambda m, x, t: torch.ones(3),
        "cam": resolve("cam"),
        "occlusion": resolve("occlusion"),
        "gradient": resolve("gradient"),
    }
    given = settled({}, "a test")
    images, _ = probe(6)
    with subject(trained(), asked_of(trained(), images, None, given), methods, given, None) as on:
        found = screen(on, list(methods), lambda name: None)
    assert list(found.costs) == ["gradient", "occlusion"]
    assert set(found.seconds) == set(found.costs)
    assert "no such luck" in found.refused["raises"]
    assert "constant or not finite" in found.refused["constant"]
    assert "constant or not finite" in found.refused["undefined"]
    assert "shape" in found.refused["shapeless"]


def test_a_map_that_is_blank_on_two_samples_only_is_given_the_others():
    images, _ = probe(6)

    def late(model, inputs, target):
        found = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0))
        return found if len(inputs) > 2 else torch.zeros_like(inputs)

    given = settled({}, "a test")
    with subject(trained(), asked_of(trained(), images, None, given), {"late": late}, given, None) as on:
        assert "late" in screen(on, ["late"], lambda name: None).costs
