"""Groups of samples: the best of each, and methods that keep their map on one of them."""

import pytest
import torch

from lightning_sanity import Criterion, Outcome
from lightning_sanity.choice.contest import compare
from lightning_sanity.choice.groups import by_group, changes, kept_by_group, kept_by_sample, members
from lightning_sanity.result.psi import sensitivity
from lightning_sanity.result.verdict import SIGNED, Evidence, judge


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


GROUPS = members([i % 10 for i in range(60)])


def evidence(similarity, *, trials=5, seed=0, measures=("spearman", "ssim")):
    """What a walk of four steps finds of a method with this similarity to its trained map, per sample ``(N,)``."""
    samples = len(similarity)

    def noise(i):
        return 0.05 * torch.randn(trials, 4, samples, generator=rng(seed + i))

    return Evidence(
        values={name: similarity + noise(i) for i, name in enumerate(measures)},
        floor={name: 0.1 + noise(i + 10) for i, name in enumerate(measures)},
        ceiling={name: torch.ones(1, samples) for name in measures},
        noise=torch.ones(1, samples),
        cross=torch.zeros(9, samples),
        dead=0.0,
    )


def copying(group, kept=0.95, rest=0.1):
    """A method that copies the input on one group."""
    similarity = torch.full((60,), rest)
    similarity[GROUPS[group]] = kept
    return similarity


def test_groups_are_named_in_the_order_they_appear():
    assert list(members(["b", "a", "b"])) == ["b", "a"]
    assert members(torch.tensor([3, 3, 1]))["3"].tolist() == [0, 1]


def test_a_method_that_passes_on_average_and_copies_the_input_on_one_group_is_found():
    given = evidence(copying("7"))
    assert judge(given, Criterion()).outcome is Outcome.PASS
    (found,) = kept_by_group({"planted": given, "honest": evidence(torch.full((60,), 0.1))}, GROUPS, Criterion())
    assert (found.method, found.group) == ("planted", "7")
    assert found.psi.high < 0.65


def test_the_index_of_a_group_is_that_of_a_study_of_it_alone():
    given = evidence(copying("2"), measures=("spearman",))
    (found,) = kept_by_group({"m": given}, {"2": GROUPS["2"]}, Criterion())
    alone = [each["spearman"][..., GROUPS["2"]] for each in (given.values, given.floor, given.ceiling)]
    expected = sensitivity(*alone).psi
    assert (found.psi.value, found.psi.low, found.psi.high) == (expected.value, expected.low, expected.high)


def test_looking_at_many_groups_finds_nothing_where_there_is_nothing():
    # every group lies at the bound: without a shared level, one of ten would often seem below it
    at_the_bound = torch.full((60,), 0.1 + 0.35 * 0.9)
    found = [
        kept_by_group({"m": evidence(at_the_bound, seed=100 * seed)}, GROUPS, Criterion()) != () for seed in range(20)
    ]
    assert sum(found) <= 2


def test_samples_on_which_a_map_is_kept_are_listed_the_worst_first():
    similarity = torch.full((30,), 0.1)
    similarity[4], similarity[17] = 0.9, 0.97
    found = kept_by_sample({"m": evidence(similarity)}, Criterion())
    assert [kept.group for kept in found] == [17, 4]


def test_one_trial_is_certain_of_no_sample():
    assert kept_by_sample({"m": evidence(torch.full((6,), 0.95), trials=1)}, Criterion()) == ()


def test_a_sign_that_is_turned_round_is_kept_as_well():
    given = evidence(copying("1", kept=-0.95, rest=0.0), measures=(SIGNED,))
    given.floor[SIGNED].sub_(0.1)
    assert [kept.group for kept in kept_by_group({"m": given}, GROUPS, Criterion())] == ["1"]


def test_a_group_whose_maps_are_undefined_or_all_alike_says_nothing():
    given = evidence(copying("3"), measures=("spearman",))
    given.values["spearman"][..., GROUPS["4"]] = torch.nan
    given.floor["spearman"][..., GROUPS["3"]] = 0.93  # unrelated maps look as much alike
    assert kept_by_group({"m": given}, GROUPS, Criterion()) == ()


def scores(samples=60, **means):
    return {name: mean + 0.05 * torch.randn(samples, generator=rng(i)) for i, (name, mean) in enumerate(means.items())}


def test_every_group_has_its_contest():
    table = scores(a=1.0, b=0.5, noise=0.0)
    parts = by_group(table, GROUPS, ["noise"])
    assert list(parts) == list(GROUPS)
    alone = compare({name: row[GROUPS["5"]] for name, row in table.items()}, ["noise"], level=1 - 0.05 / 10)
    assert parts["5"] == alone


@pytest.mark.parametrize("turned", [True, False])
def test_a_best_that_changes_in_a_group_is_named(turned):
    table = scores(a=1.0, b=0.5, noise=0.0)
    if turned:
        table["a"][GROUPS["8"]] -= 1.0
    found = changes(compare(table, ["noise"]), by_group(table, GROUPS, ["noise"]), "deletion")
    assert [(c.group, c.column, c.method, c.better) for c in found] == (
        [("8", "deletion", "a", ("b",))] if turned else []
    )


def test_a_group_of_one_sample_has_no_best():
    part = by_group(scores(samples=5, a=1.0, b=0.5, noise=0.0), members("xxyxx"), ["noise"])["y"]
    assert part.tied == ()
    assert set(part.unmeasured) == {"a", "b", "noise"}
