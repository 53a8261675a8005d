"""How far maps agree, beside slow references."""

import pytest
import torch
from scipy import stats

from lightning_sanity.choice.agreement import agreement_of


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(seed=0, samples=4):
    return torch.randn(samples, 6, 5, generator=rng(seed))


def test_rank_agreement_is_that_of_scipy():
    a, b = maps(0).abs(), maps(1).abs()
    found = agreement_of({"a": a, "b": b}).by_sample["rank"][0, 1]
    expected = [stats.spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_top_k_and_sign_agreement_follow_their_definition():
    a, b = maps(0), maps(1)
    found = agreement_of({"a": a.abs(), "b": b.abs()}, {"a": a, "b": b}, k=0.3)
    for i, (x, y) in enumerate(zip(a.flatten(1), b.flatten(1), strict=True)):
        top = [set(each.abs().topk(9).indices.tolist()) for each in (x, y)]
        common = sorted(top[0] & top[1])
        assert found.by_sample["top_k"][0, 1, i] == pytest.approx(len(common) / 9)
        equal = sum(bool(x[p].sign() == y[p].sign()) for p in common) / len(common)
        assert found.by_sample["sign"][0, 1, i] == pytest.approx(equal)


def test_a_method_agrees_with_itself_and_matrices_are_symmetric():
    found = agreement_of({"a": maps(0).abs(), "b": maps(1).abs()}, {"a": maps(0), "b": maps(1)})
    for measure in ("top_k", "rank", "sign"):
        matrix = found.matrix(measure)
        torch.testing.assert_close(matrix, matrix.T)
        torch.testing.assert_close(matrix.diagonal(), torch.ones(2))


def test_opposite_maps_agree_in_size_and_not_in_sign():
    found = agreement_of({"a": maps().abs(), "b": maps().abs()}, {"a": maps(), "b": -maps()})
    assert found.matrix("top_k")[0, 1] == pytest.approx(1)
    assert found.matrix("sign")[0, 1] == 0


def test_a_method_without_a_sign_has_no_sign_agreement():
    found = agreement_of({"a": maps(0).abs(), "b": maps(1).abs()}, {"a": maps(0)})
    assert found.by_sample["sign"][0, 1].isnan().all()
    assert found.matrix("rank")[0, 1].isfinite()


def test_methods_that_go_together_form_a_cluster():
    one, two = maps(0).abs(), maps(1).abs()
    given = {"a": one, "b": two, "a again": one + 0.05 * maps(2).abs(), "b again": two + 0.05 * maps(3).abs()}
    assert {frozenset(group) for group in agreement_of(given).clusters} == {
        frozenset({"a", "a again"}),
        frozenset({"b", "b again"}),
    }


def test_a_method_whose_maps_are_constant_stays_alone():
    found = agreement_of({"a": maps(0).abs(), "flat": torch.ones(4, 6, 5), "a again": maps(0).abs()})
    assert ("flat",) in found.clusters
    assert len(found.clusters) == 2
    assert agreement_of({}).clusters == ()
    assert agreement_of({"a": maps()}).clusters == (("a",),)


def test_the_samples_that_two_methods_see_differently_come_first():
    a = maps(0, samples=5).abs()
    b = a.clone()
    b[3] = -b[3]
    b[1] = maps(9).abs()[1]
    b[4] = 1.0  # no ranking
    found = agreement_of({"a": a, "b": b})
    assert found.most_different("a", "b", count=2) == (3, 1)
    assert 4 not in found.most_different("a", "b", count=5)


def test_maps_of_other_sizes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        agreement_of({"a": torch.rand(4, 6, 5), "b": torch.rand(4, 3, 3)})
