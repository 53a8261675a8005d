"""Intervals and the set of the best, beside slow references and simulated studies."""

import math

import contests
import numpy as np
import pytest
import torch
from scipy import stats

from lightning_sanity.choice.contest import compare, mean_interval, simultaneous


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def scores(means, samples=16, spread=0.3, seed=0):
    drawn = torch.tensor(means)[:, None] + spread * torch.randn(len(means), samples, generator=rng(seed))
    hard = torch.randn(samples, generator=rng(seed + 1))  # shared by all methods: cancels in pairs
    return {f"m{i}": row + hard for i, row in enumerate(drawn)}


def test_one_difference_has_the_interval_of_scipys_paired_test():
    a, b = scores([1.0, 0.5]).values()
    (found,) = simultaneous([a - b])
    expected = stats.ttest_rel(a.double().numpy(), b.double().numpy()).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6)


def slow_critical(correlation, samples, sides, draws=10_000):
    """The 95 % point of the largest t, from whole simulated data sets."""
    data = np.random.default_rng(0).multivariate_normal(np.zeros(len(correlation)), correlation, (draws, samples))
    t = data.mean(1) / data.std(1, ddof=1) * math.sqrt(samples)
    return float(np.quantile((np.abs(t) if sides == 2 else t).max(1), 0.95))


@pytest.mark.parametrize("samples", [6, 24])
def test_simultaneous_intervals_have_the_width_of_a_slow_simulation(samples):
    differences = torch.randn(5, samples, generator=rng())
    differences -= differences.mean(1, keepdim=True)
    differences = torch.linalg.qr(differences.T)[0].T  # without any correlation, as the shrunk estimate then says
    found = simultaneous(list(differences + 1))
    error = float(differences[0].std() / math.sqrt(samples))
    assert (found[0].high - found[0].value) / error == pytest.approx(slow_critical(np.eye(5), samples, 2), rel=0.04)


def test_correlated_differences_need_a_narrower_interval_than_unrelated_ones():
    shared = torch.randn(64, generator=rng())
    alike = [shared + 0.1 * torch.randn(64, generator=rng(i)) for i in range(8)]
    unrelated = [torch.randn(64, generator=rng(i)) for i in range(8)]

    def width(differences):
        return (simultaneous(differences)[0].high - differences[0].mean()) / (differences[0].std() / 8)

    assert stats.t.ppf(0.975, 63) < width(alike) < 0.9 * width(unrelated)
    assert width(unrelated) < 1.03 * stats.t.ppf(1 - 0.025 / 8, 48)  # never wider than Bonferroni's


def slow_distances(table, names, c):
    """Hsu's constrained intervals by their definition, from critical values ``{name: c}``."""
    mean = {n: float(table[n].double().mean()) for n in names}

    def error(a, b):
        return float((table[a] - table[b]).double().std() / math.sqrt(len(table[a])))

    upper = {i: max(0.0, min(mean[i] - mean[j] + c[i] * error(i, j) for j in names if j != i)) for i in names}
    best = [i for i in names if upper[i] > 0]
    lower = {}
    for i in names:
        rivals = [mean[i] - mean[j] - c[j] * error(i, j) for j in best if j != i]
        lower[i] = 0.0 if best == [i] else min(0.0, min(rivals))
    return {i: (lower[i], upper[i]) for i in names}, best


@pytest.mark.parametrize("means", [[0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.0], [0.0, 3.0]])
def test_distances_from_the_best_follow_their_definition(means):
    table = scores(means, samples=40)
    names = list(table)
    found = compare(table)
    shared = {}
    for i in names:
        gaps = np.stack([(table[j] - table[i]).numpy() for j in names if j != i])
        shared[i] = slow_critical(np.atleast_2d(np.corrcoef(gaps)), 40, 1)
    expected, best = slow_distances(table, names, shared)
    for name in names:
        assert (found.behind[name].low, found.behind[name].high) == pytest.approx(expected[name], abs=0.02)
    assert set(found.tied) == set(best)


def test_a_method_is_in_the_set_unless_another_is_ahead_of_it():
    found = compare(scores([0.0, 0.1, 0.2, 0.6, 0.7]))
    reached = {other for _, other in found.ahead}
    assert set(found.tied) == set(found.names) - reached
    assert {name for name in found.names if found.behind[name].high > 0} == set(found.tied)
    assert 0 < len(found.tied) < len(found.names)


def test_pairing_cancels_what_makes_a_sample_hard():
    table = scores([0.0, 0.3], samples=32, spread=0.1)
    hard = 100 * torch.randn(32, generator=rng(5))
    assert compare({name: row + hard for name, row in table.items()}).tied == compare(table).tied == ("m1",)


def test_the_best_does_not_depend_on_the_order_of_samples_or_methods():
    table = scores([0.0, 0.2, 0.3])
    shuffled = {name: table[name].flip(0) for name in reversed(table)}
    found, again = compare(table), compare(shuffled)
    assert found.tied == again.tied
    for name in table:
        assert found.behind[name].low == pytest.approx(again.behind[name].low, rel=0.05)


def test_copies_of_one_method_are_tied():
    same = scores([1.0])["m0"]
    found = compare({"a": same, "b": same.clone(), "c": same - 1})
    assert set(found.tied) == {"a", "b"}
    assert found.behind["a"].value == 0


def test_baselines_are_beaten_by_an_interval_above_zero():
    table = scores([1.0, 0.02, 0.0, -1.0])
    found = compare(table, ["m2"])
    assert [found.beats_baselines(name) for name in ("m0", "m1", "m3")] == [True, False, False]
    assert [found.loses_to_a_baseline(name) for name in ("m0", "m1", "m3")] == [False, False, True]
    assert "m2" not in found.names
    assert found.baselines == ("m2",)


def test_without_a_baseline_none_is_beaten():
    assert not compare(scores([1.0, 0.0])).beats_baselines("m0")


def test_a_sample_without_a_score_is_left_out_of_its_pairs_alone():
    table = scores([0.0, 1.0, 0.5], samples=20)
    holed = {**table, "m2": table["m2"].clone()}
    holed["m2"][:10] = torch.nan
    full, found = compare(table, ["m0"]), compare(holed, ["m0"])
    assert found.over["m1", "m0"].value == full.over["m1", "m0"].value
    assert found.over["m2", "m0"].value == pytest.approx(float((table["m2"] - table["m0"])[10:].mean()), abs=1e-6)


def test_a_method_without_two_scores_is_named_and_takes_no_part():
    table = scores([0.0, 1.0, 0.5])
    table["m2"] = torch.full((16,), torch.nan)
    found = compare(table)
    assert found.unmeasured == ("m2",)
    assert "m2" not in found.names


def test_methods_without_a_sample_in_common_cannot_be_told_apart():
    early, late = torch.rand(8, generator=rng()), torch.rand(8, generator=rng(1)) + 9
    early[4:], late[:4] = torch.nan, torch.nan
    found = compare({"a": early, "b": late})
    assert set(found.tied) == {"a", "b"}
    assert math.isnan(found.behind["a"].low)


def test_a_few_values_that_are_all_the_same_prove_nothing():
    few = compare({"hits": torch.ones(4), "misses": torch.zeros(4)})
    many = compare({"hits": torch.ones(16), "misses": torch.zeros(16)})
    assert set(few.tied) == {"hits", "misses"}
    assert many.tied == ("hits",)
    assert mean_interval(torch.ones(3)).low == 0


def test_scale_and_shift_of_the_scores_do_not_matter():
    table = scores([0.0, 0.2, 0.4])
    found = compare(table, ["m0"])
    scaled = compare({name: 1e-6 * row.double() + 7e-6 for name, row in table.items()}, ["m0"])
    assert scaled.tied == found.tied
    assert scaled.over["m2", "m0"].low == pytest.approx(1e-6 * found.over["m2", "m0"].low, rel=1e-4)


def test_a_single_method_is_the_best_there_is():
    found = compare({"only": torch.rand(5, generator=rng()), "noise": torch.rand(5, generator=rng(1))}, ["noise"])
    assert found.tied == ("only",)
    assert found.best == "only"
    assert compare({}).best is None


def test_scores_of_other_samples_are_refused():
    with pytest.raises(ValueError, match=r"one shape \(N,\)"):
        compare({"a": torch.rand(4), "b": torch.rand(5)})
    with pytest.raises(ValueError, match="unknown baseline 'edge'; did you mean edges"):
        compare({"a": torch.rand(4), "edges": torch.rand(4)}, ["edge"])
    with pytest.raises(ValueError, match="level"):
        compare({"a": torch.rand(4)}, level=95)


@pytest.mark.parametrize(("law", "samples"), [("normal", 16), ("skewed", 4), ("families", 8), ("yes and no", 16)])
def test_the_set_holds_the_truly_best(law, samples):
    # 0.95 is promised; 40 studies with this seed, of which at least 0.9
    rates = contests.covered([0.6, 0.7, 0.8, 0.9], law, samples, 40, rng())
    assert rates["best in set"] >= 0.9
    assert rates["unjust"] <= 0.1


def test_the_set_shrinks_with_samples():
    few, many = (contests.covered([0.0, 0.2, 0.4, 0.6], "normal", n, 10, rng())["size"] for n in (4, 128))
    assert few > 2 * many
