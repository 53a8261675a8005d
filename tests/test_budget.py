import contextlib
import threading
import time

import pytest

from lightning_sanity import parameter_randomization_test
from lightning_sanity.budget import Interrupted, alarm, thin


def test_what_fits_is_left_alone():
    plan = thin({"a": 1.0}, trials=3, depths=4, seconds=12.0)
    assert (plan.trials, plan.depths, plan.dropped) == (3, (0, 1, 2, 3), ())
    assert plan.settings(3, 4) == {}


@pytest.mark.parametrize("seconds", [30.0, 50.0, 70.0, 90.0])
def test_trials_and_depths_shrink_together_and_fit(seconds):
    plan = thin({"a": 0.5, "b": 0.5}, trials=10, depths=10, seconds=seconds)
    assert plan.seconds <= seconds
    assert plan.dropped == ()
    assert abs(plan.trials - len(plan.depths)) <= 1


def test_full_depth_is_always_kept_and_depths_are_evenly_spread():
    plan = thin({"a": 1.0}, trials=2, depths=9, seconds=6.0)
    assert plan.depths == (2, 5, 8)


def test_methods_go_before_controls_the_most_expensive_first():
    costs = {"cheap": 1.0, "dear": 8.0, "middle": 3.0, "control": 5.0}
    assert thin(costs, 2, 2, 36.0, controls=["control"]).dropped == ("dear",)
    assert thin(costs, 2, 2, 24.0, controls=["control"]).dropped == ("dear", "middle")


def test_when_nothing_fits_the_smallest_walk_of_the_cheapest_method_is_left():
    plan = thin({"a": 1.0, "b": 2.0, "control": 0.5}, 5, 9, 0.01, controls=["control"])
    assert (plan.trials, plan.depths, plan.dropped) == (1, (8,), ("b", "control"))


def test_steps_that_are_not_nested_are_all_kept():
    plan = thin({"a": 1.0}, trials=8, depths=5, seconds=10.0, whole=True)
    assert (plan.trials, len(plan.depths)) == (2, 5)


def hang():
    while True:
        with contextlib.suppress(Exception):  # what a careless method does
            time.sleep(10)


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
