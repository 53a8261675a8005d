import contextlib
import threading
import time
from dataclasses import replace

import pytest
import torch

from lightning_sanity import parameter_randomization_test
from lightning_sanity.attribution.derived import Derived
from lightning_sanity.attribution.method import output_gradient
from lightning_sanity.resources.budget import Cost, Interrupted, Shared, alarm, spread, thin


def test_what_fits_is_left_alone():
    plan = thin(Cost({"a": 1.0}), trials=3, depths=4, seconds=12.0)
    assert (plan.trials, plan.depths, plan.dropped) == (3, (0, 1, 2, 3), ())
    assert plan.settings(3, 4) == {}


@pytest.mark.parametrize("seconds", [30.0, 50.0, 70.0, 90.0])
def test_trials_and_depths_shrink_together_and_fit(seconds):
    plan = thin(Cost({"a": 0.5, "b": 0.5}), trials=10, depths=10, seconds=seconds)
    assert plan.seconds <= seconds
    assert plan.dropped == ()
    assert abs(plan.trials - len(plan.depths)) <= 1


def test_first_and_full_depth_are_kept_and_depths_are_evenly_spread():
    plan = thin(Cost({"a": 1.0}), trials=2, depths=9, seconds=6.0)
    assert plan.depths == (0, 4, 8)


def test_spread_depths_differ_and_hold_both_ends():
    for depths in range(2, 30):
        for number in range(2, depths + 1):
            found = spread(number, depths)
            assert len(set(found)) == number
            assert (found[0], found[-1]) == (0, depths - 1)
        assert spread(1, depths) == (depths - 1,)


def test_methods_go_before_controls_the_most_expensive_first():
    costs = Cost({"cheap": 1.0, "dear": 8.0, "middle": 3.0, "control": 5.0})
    assert thin(costs, 2, 2, 36.0, controls=["control"]).dropped == ("dear",)
    assert thin(costs, 2, 2, 24.0, controls=["control"]).dropped == ("dear", "middle")


def test_when_nothing_fits_the_smallest_walk_of_the_cheapest_method_is_left():
    plan = thin(Cost({"a": 1.0, "b": 2.0, "control": 0.5}), 5, 9, 0.01, controls=["control"])
    assert (plan.trials, plan.depths, plan.dropped) == (1, (8,), ("b", "control"))


def test_steps_that_are_not_nested_are_all_kept():
    plan = thin(Cost({"a": 1.0}), trials=8, depths=5, seconds=10.0, whole=True)
    assert (plan.trials, len(plan.depths)) == (2, 5)


def test_a_shared_walk_is_paid_once_by_all_its_methods_and_not_for_trials_already_walked():
    cost = Cost({"a": 1.0, "b": 1.0}, {"b": 5.0}, 2.0, 0.5, (Shared(frozenset("ab"), 10.0, 3.0),))
    assert cost.seconds(["a"], 2, 4) == 2 * (2.0 + 4 * 1.5 + 10.0 + 4 * 3.0)
    assert cost.seconds(["a", "b"], 2, 4) == 2 * (2.0 + 5.0 + 4 * 2.5 + 10.0 + 4 * 3.0)
    assert cost.seconds(["a"], 2, 4) - replace(cost, ahead=1).seconds(["a"], 2, 4) == 10.0 + 4 * 3.0


def test_methods_of_one_walk_stay_together_even_where_it_does_not_fit():
    cost = Cost({"a": 0.1, "b": 0.1, "control": 0.01, "dear": 9.0}, shared=(Shared(frozenset("ab"), 10.0, 3.0),))
    plan = thin(cost, 3, 9, 5.0, controls=["control"])
    assert (plan.trials, plan.depths, plan.dropped) == (1, (8,), ("dear",))


def test_a_single_trial_of_all_methods_is_left_before_nothing_fits():
    cost = Cost({"a": 0.1, "b": 0.1}, shared=(Shared(frozenset("ab"), 5.0, 1.0),))
    plan = thin(cost, 3, 9, 10.0)
    assert (plan.trials, len(plan.depths), plan.dropped) == (1, 4, ())


def hang():
    while True:
        with contextlib.suppress(Exception):  # what a careless method does
            time.sleep(10)


def test_two_processes_walk_three_trials_in_the_time_of_four():
    walk = Shared(frozenset("a"), 4.0, 1.0)
    cost = Cost({"a": 0.5}, shared=(walk,), workers=2)
    alone = Cost({"a": 0.5}, shared=(walk,))
    assert cost.seconds("a", 3, 6) == cost.seconds("a", 4, 6) == alone.seconds("a", 2, 6)
    ahead = Cost({"a": 0.5}, shared=(walk,), ahead=1, workers=2)
    assert cost.seconds("a", 4, 6) - ahead.seconds("a", 4, 6) == 4.0 + 6 * 1.0
    assert thin(cost, trials=8, depths=1, seconds=11.0).trials == 4


def test_the_slowest_process_counts():
    quick = Cost({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}, 0.5, 0.1, (Shared(frozenset("a"), 1.0, 1.0),), 1, 2)
    slow = Cost({"a": 0.5, "b": 3.0}, {"a": 2.0, "b": 0.0}, 0.2, 0.4, (Shared(frozenset("a"), 0.5, 4.0),), 0, 2)
    both = Cost({"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 0.0}, 0.5, 0.4, (Shared(frozenset("a"), 1.0, 4.0),), 0, 2)
    assert Cost.largest([quick, slow]) == both


def test_alarm_ends_a_block_that_hangs_in_python():
    with pytest.raises(Interrupted, match="too long"), alarm(0.05, "too long"):
        hang()


def test_alarm_leaves_no_timer_behind():
    with alarm(0.05, "too long"):
        pass
    time.sleep(0.1)


def test_alarm_does_nothing_outside_the_main_thread():
    ended = []

    def work():
        with alarm(0.01, "too long"):
            time.sleep(0.05)
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended


def slow(model, inputs, target):
    time.sleep(0.05)
    return inputs.clone().requires_grad_().detach() * model(inputs).sum().detach()


def test_a_test_is_thinned_to_its_time_and_says_so(digits_network):
    model, images, _ = digits_network
    started = time.perf_counter()
    result = parameter_randomization_test(
        model, images[:4], methods={"slow": slow}, trials=20, repeats=1, pictures=False, max_seconds=2.0, progress=False
    )
    assert time.perf_counter() - started < 6.0
    thinned = result.settings["thinned"]
    assert thinned["trials"][1] == 20
    run = result.settings["trials_run"]["slow"]
    assert thinned["trials"][0] == run == len(result.curves["slow", "spearman"].values) < 20
    assert any("thinned to fit into 2 s" in note for note in result.coverage.notes)
    assert result.coverage.share == 1.0


def test_a_method_for_which_there_is_no_time_is_named(digits_network):
    def endless(model, inputs, target):
        time.sleep(0.6)
        return slow(model, inputs, target)

    model, images, _ = digits_network
    result = parameter_randomization_test(
        model, images[:4], methods={"endless": endless, "gradient": "gradient"}, trials=2, repeats=1, pictures=False,
        max_seconds=2.5, progress=False,
    )  # fmt: skip
    assert result.settings["thinned"]["methods"][0] == "endless"
    assert "max_time is too short" in result.verdicts["endless"].reason
    assert not result.passed
    assert result.verdicts["gradient"].psi > 0.3


TRIES = 3  # other processes slow even the computing of this one, by caches and clock rates that they share


def computing_only(monkeypatch):
    """Count what this process computes instead of what others make it wait for."""
    monkeypatch.setattr(time, "perf_counter", time.process_time)


def near(cost):
    """Within a quarter, or within 20 ms of a walk so short that what is done once shows."""
    return cost["predicted_seconds"] == pytest.approx(cost["measured_seconds"], rel=0.25, abs=0.02)


def run(problem, methods, seconds, engine="auto", **changes):
    model, images, _ = problem
    given = {"trials": 2, "repeats": 1, "controls": False, "pictures": False, "progress": False, **changes}
    return parameter_randomization_test(model, images[:4], methods=methods, max_seconds=seconds, engine=engine, **given)


@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize(
    "methods",
    [["gradient"], ["gradient", "gradcam", "guided_backprop"], ["integrated_gradients", "gradient"], ["occlusion"]],
    ids="+".join,
)
def test_a_walk_takes_what_was_predicted(digits_network, monkeypatch, methods, engine):
    computing_only(monkeypatch)

    def predicted():
        settings = run(digits_network, methods, 1000.0, engine).settings
        assert settings["thinned"] == {}
        return near(settings["cost"])

    assert any(predicted() for _ in range(TRIES))


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_a_thinned_test_takes_its_time_and_not_more(digits_network, monkeypatch, engine):
    computing_only(monkeypatch)

    def kept():
        result = run(digits_network, ["gradient", "gradcam", "guided_backprop"], 1.5, engine, trials=300)
        assert set(result.settings["engine"].values()) == {"plain" if engine == "plain" else "two_stream"}
        return 0.75 <= result.seconds <= 1.1 * 1.5 and near(result.settings["cost"])

    assert any(kept() for _ in range(TRIES))


def test_a_trial_that_was_walked_beforehand_is_the_same_trial(digits_network):
    limited, free = (run(digits_network, ["gradient", "gradcam"], seconds) for seconds in (1000.0, None))
    assert free.settings["cost"] == {}
    for key, curve in free.curves.items():
        torch.testing.assert_close(limited.curves[key].values, curve.values, rtol=0, atol=0, equal_nan=True)


def test_a_walk_over_all_depths_that_hangs_is_ended(digits_network):
    hanging = Derived(output_gradient, lambda rows, evidence: hang())
    with pytest.raises(Interrupted, match="a walk over all depths did not return within twice max_time"):
        run(digits_network, {"hanging": hanging}, 1.0)


@pytest.fixture
def _short(monkeypatch):
    """Too little time for all noisy copies, however fast the machine is."""
    monkeypatch.setattr("lightning_sanity.parameter_randomization.trained_maps._GUARDING", 0.0)


@pytest.mark.usefixtures("_short")
def test_short_time_guards_by_fewer_copies_and_says_so(digits_network):
    result = run(digits_network, ["gradient", "smoothgrad"], 1000.0, repeats=3, trials=1)
    assert result.settings["thinned"] == {"noisy copies": [1, 3]}
    (note,) = (note for note in result.coverage.notes if "thinned to fit" in note)
    assert "1 of 3 noisy copies" in note
    assert [len(result.curves[name, "spearman"].ceiling) for name in ("gradient", "smoothgrad")] == [1, 1]
    for verdict in result.verdicts.values():
        assert verdict.reason.endswith(f"({note})")


@pytest.mark.usefixtures("_short")
def test_short_time_gives_the_maps_and_curves_of_a_long_one(digits_network):
    short, free = (run(digits_network, ["gradient", "guided_backprop"], seconds, repeats=3) for seconds in (1e3, None))
    assert "noisy copies" in short.settings["thinned"]
    for name, maps in free.trained_maps.items():
        torch.testing.assert_close(short.trained_maps[name], maps, rtol=0, atol=1)  # of 255
    for key, curve in free.curves.items():
        torch.testing.assert_close(short.curves[key].values, curve.values, rtol=0, atol=1e-3, equal_nan=True)


@pytest.mark.usefixtures("_short")
def test_shared_maps_that_are_not_a_methods_own_are_not_used(digits_network):
    """A method whose shortcut mirrors the map is explained by itself."""
    wrong = Derived(output_gradient, lambda rows, seen: seen.mean["gradient"].flip(-1))
    maps = run(digits_network, {"wrong": wrong, "gradient": "gradient"}, 1000.0, repeats=3).trained_maps
    torch.testing.assert_close(maps["wrong"], maps["gradient"], rtol=0, atol=1)  # of 255


@pytest.mark.parametrize(("outer", "inner", "rings"), [(5.0, 0.05, "inner"), (0.05, 5.0, "outer")])
def test_of_two_alarms_the_one_that_is_due_first_rings(outer, inner, rings):
    with pytest.raises(Interrupted, match=rings), alarm(outer, "outer"), alarm(inner, "inner"):
        time.sleep(2)


def test_an_alarm_inside_another_leaves_the_other_its_time():
    def work():
        with pytest.raises(Interrupted, match="inner"), alarm(0.05, "inner"):
            time.sleep(2)
        with alarm(0.1, "over in time"):
            pass
        time.sleep(2)

    begun = time.monotonic()
    with pytest.raises(Interrupted, match="outer"), alarm(0.2, "outer"):
        work()
    assert 0.2 <= time.monotonic() - begun < 1


def test_a_method_that_fails_on_the_trained_model_is_no_obstacle_to_a_limit(digits_network):
    class Closed(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(x.detach())

    model, images, _ = digits_network
    given = {"trials": 1, "repeats": 1, "pictures": False, "progress": False, "max_seconds": 20.0, "controls": False}
    result = parameter_randomization_test(Closed(model), images[:4], methods=["gradient", "occlusion"], **given)
    assert "gradient" in result.verdicts["gradient"].reason
    assert result.curves["occlusion", "spearman"].values.shape[0] == 1
