"""Undominated methods, what is recommended, and whether columns agree."""

import itertools

import pytest
import torch
from scipy import stats

from lightning_sanity.choice.contest import compare
from lightning_sanity.choice.pareto import accords, front


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def column(seed=0, samples=24, spread=0.05, **means):
    return {
        name: mean + spread * torch.randn(samples, generator=rng(seed * 100 + i))
        for i, (name, mean) in enumerate(means.items())
    }


def columns(*given):
    return {f"c{i}": compare(each, ["noise"]) for i, each in enumerate(given)}


BOTH_WAYS = (column(0, a=1.0, b=0.5, c=0.4, noise=0.0), column(1, a=0.5, b=1.0, c=0.4, noise=0.0))


def slow_undominated(contests):
    """Nobody is ahead of it in a column without being behind it in another."""
    names = next(iter(contests.values())).names
    return {
        a
        for a in names
        if not any(
            any((b, a) in c.ahead for c in contests.values()) and not any((a, b) in c.ahead for c in contests.values())
            for b in names
        )
    }


def test_who_is_best_in_some_column_is_undominated():
    found = front(columns(*BOTH_WAYS), {})
    assert found.undominated == ("a", "b")
    assert set(found.dominated_by["c"]) == {"a", "b"}


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_that_of_a_slow_search(seed):
    draw = torch.rand(2, 6, generator=rng(seed))
    given = columns(*(column(seed + 9 * i, **{f"m{k}": float(v) for k, v in enumerate(row)}, noise=0.0)
                      for i, row in enumerate(draw)))  # fmt: skip
    assert set(front(given, {}).undominated) == slow_undominated(given)


def test_the_cheapest_of_the_undominated_is_recommended():
    given = columns(*BOTH_WAYS)
    assert front(given, {"a": 3, "b": 2, "c": 1}).recommended == "b"
    assert front(given, {"a": 1, "b": 2, "c": 1}).recommended == "a"
    assert front(given, {"a": 1, "b": 2, "c": 1}).also == ("b",)


def test_a_price_that_nobody_knows_counts_as_the_dearest():
    given = columns(*BOTH_WAYS)
    assert front(given, {"b": 100.0}).recommended == "b"
    assert front(given, {"a": float("nan"), "b": 100.0}).recommended == "b"


def test_a_tie_goes_to_the_cheaper():
    given = columns(column(0, dear=1.0, cheap=0.999, noise=0.0))
    assert front(given, {"dear": 50, "cheap": 1}).recommended == "cheap"


def test_a_method_that_was_refused_neither_wins_nor_dominates():
    given = columns(column(0, refused=1.0, plain=0.5, noise=0.0))
    assert front(given, {}).recommended == "refused"
    found = front(given, {}, allowed=["plain"])
    assert (found.recommended, found.undominated, found.dominated_by) == ("plain", ("plain",), {})


def test_a_method_that_loses_to_a_baseline_anywhere_is_not_recommended():
    given = columns(column(0, a=1.0, noise=0.0), column(1, a=-1.0, noise=0.0))
    found = front(given, {})
    assert found.recommended is None
    assert found.beating == ()


def test_it_is_said_why_nothing_is_recommended():
    noise = columns(column(0, a=0.0, b=0.0, noise=0.0))
    assert front(noise, {}).without == "no method beats noise for certain on these 24 samples"
    assert "no baseline" in front({"c": compare(column(a=1.0))}, {}).without
    assert "no method was left" in front(noise, {}, allowed=[]).without
    # b is ahead of a, and loses to a baseline elsewhere
    split = columns(column(0, a=0.5, b=1.0, noise=0.0), column(1, spread=2.0, a=0.0, b=0.0, noise=0.0))
    assert front(split, {}, allowed=["a", "b"]).recommended == "b"


def test_a_circle_of_dominance_puts_nobody_out():
    # a beats b in one column, b beats c in another, c beats a in a third; what is not said is too noisy to tell
    rows = []
    for better, worse in ("ab", "bc", "ca"):
        other = ({"a", "b", "c"} - {better, worse}).pop()
        table = column(len(rows), **{better: 1.0, worse: 0.6, "noise": 0.0})
        table[other] = 0.8 + 3 * torch.randn(24, generator=rng(50 + len(rows)))
        rows.append(table)
    given = columns(*rows)
    assert {pair for c in given.values() for pair in c.ahead} == {("a", "b"), ("b", "c"), ("c", "a")}
    assert set(front(given, {}).undominated) == {"a", "b", "c"}


def test_accord_is_the_rank_correlation_of_the_means():
    tables = {f"c{i}": column(i, spread=0.4, **{f"m{k}": k / 6 for k in range(6)}) for i in range(3)}
    found = accords(tables, {name: compare(table) for name, table in tables.items()})
    assert len(found) == 3
    for accord, (a, b) in zip(found, itertools.combinations(tables, 2), strict=True):
        means = [[float(row.mean()) for row in tables[name].values()] for name in (a, b)]
        assert accord.columns == (a, b)
        assert accord.correlation.value == pytest.approx(stats.spearmanr(*means).statistic)
        assert accord.correlation.low <= accord.correlation.value <= accord.correlation.high


def test_columns_that_contradict_each_other_are_a_warning():
    up = column(0, **{f"m{k}": k / 6 for k in range(6)})
    down = {name: 1 - row for name, row in up.items()}
    (same,) = accords({"a": up, "b": up}, {"a": compare(up), "b": compare(up)})
    (against,) = accords({"a": up, "b": down}, {"a": compare(up), "b": compare(down)})
    assert same.warning == ""
    assert "rank the methods differently: rank correlation -1.00" in against.warning
    assert "none may be the best in both" in against.warning


def test_three_methods_are_too_few_for_a_warning():
    up = column(0, a=0.0, b=1.0, c=2.0)
    (found,) = accords({"a": up, "b": {k: -v for k, v in up.items()}}, {"a": compare(up), "b": compare(up)})
    assert found.methods == 3
    assert found.warning == ""


def test_a_column_that_ranks_nobody_says_so():
    flat = {f"m{k}": torch.ones(8) for k in range(5)}
    up = column(0, samples=8, **{f"m{k}": float(k) for k in range(5)})
    (found,) = accords({"a": flat, "b": up}, {"a": compare(flat), "b": compare(up)})
    assert "gives all methods the same score" in found.warning
