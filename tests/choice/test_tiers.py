"""Candidates are tried in an order that a short budget can afford."""

import itertools
import math

from lightning_sanity.choice.tiers import CHEAP, price, tiers

COSTS = {
    "rise": 500.0,
    "guided": 1.0,
    "gradient": 1.0,
    "deeplift": 2.0,
    "mine": math.nan,
    "smooth": 25.0,
    "guided2": 2.0,
}
BARRED = ("guided", "guided2")


def order(in_time):
    return [name for tier in tiers(COSTS, BARRED, in_time) for name in tier.names]


def test_every_candidate_is_in_one_tier():
    for in_time in (True, False):
        assert sorted(order(in_time)) == sorted(COSTS)


def test_where_time_is_short_what_is_never_recommended_waits_for_what_may_be():
    found = order(in_time=True)
    assert found.index("guided") > found.index("deeplift") > found.index("gradient")
    assert found.index("guided2") < found.index("smooth") < found.index("rise")


def test_without_a_limit_costs_alone_decide():
    first, second, third = tiers(COSTS, BARRED, in_time=False)
    assert set(first.names) == {"guided", "gradient", "deeplift", "guided2"}
    assert set(second.names) == {"mine", "smooth"}
    assert third.names == ("rise",)


def test_later_tiers_end_later_and_leave_time_for_scores():
    for in_time in (True, False):
        ends = [tier.until for tier in tiers(COSTS, BARRED, in_time)]
        assert all(a <= b for a, b in itertools.pairwise(ends))
        assert ends[-1] < 1


def test_what_follows_from_one_pass_is_not_paid_twice():
    seconds = {"gradient": 1.0, "gradcam": 1.2, "deeplift": 2.0}
    found = price(list(seconds), seconds, {"gradient", "gradcam"})
    assert found["gradient"] == 1.0
    assert found["gradcam"] < 1.2
    assert found["deeplift"] == 2.0
    assert price(["gradcam"], seconds, {"gradient", "gradcam"}) == {"gradcam": 1.2}


def test_a_cost_that_nobody_knows_counts_as_moderate():
    assert "mine" in next(tier for tier in tiers({"mine": math.nan, "a": CHEAP}, (), False) if tier.names).names
