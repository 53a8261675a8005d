"""The time that is left, as it is told: against a clock that only the test moves, and against a real run."""

import time

import pytest
import torch

from lightning_sanity import parameter_randomization_test
from lightning_sanity.resources.progress import Forecast, progress_bar


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def told():
    return []


@pytest.fixture
def forecast(clock, told):
    return Forecast(lambda done, total, label: told.append((done, total, label)), clock)


def work(clock, forecast, kind, pieces, seconds):
    for _ in range(pieces):
        clock.seconds += seconds
        forecast.did(kind, 1, kind)


def test_equal_work_is_foreseen_to_the_millisecond(clock, told, forecast):
    forecast.plan("a", 10)
    work(clock, forecast, "a", 10, 0.3)
    assert {total for _, total, _ in told} == {3000}
    assert [done for done, *_ in told] == [300 * k for k in range(1, 11)]


def test_work_of_another_kind_is_foreseen_by_what_was_done_until_its_own_price_shows(clock, told, forecast):
    forecast.plan("a", 4)
    forecast.plan("b", 20)
    work(clock, forecast, "a", 4, 1.0)
    assert told[-1][:2] == (4000, 24000)
    work(clock, forecast, "b", 1, 5.0)
    assert told[-1][1] == pytest.approx(9000 + 19 * 9000 / 5)  # one of 20 says little: the mean of all five so far
    work(clock, forecast, "b", 1, 5.0)
    assert told[-1][:2] == (14000, 14000 + 18 * 5000)


def test_a_first_round_that_holds_more_is_forgotten_after_the_second(clock, told, forecast):
    forecast.plan("b", 30)
    work(clock, forecast, "b", 10, 9.0)
    forecast.round("b")
    assert told[-1][1] == 270_000
    work(clock, forecast, "b", 10, 1.0)
    forecast.round("b")
    clock.seconds += 1.0
    forecast.did("b", 1, "b")
    assert told[-1][:2] == (101_000, 110_000)


def test_what_is_planned_anew_counts_from_here_on(clock, told, forecast):
    forecast.plan("a", 100)
    work(clock, forecast, "a", 2, 1.0)
    forecast.plan("a", 3)
    work(clock, forecast, "a", 1, 1.0)
    assert told[-1][:2] == (3000, 5000)
    work(clock, forecast, "a", 2, 1.0)
    assert told[-1][:2] == (5000, 5000)


def test_more_than_was_planned_leaves_nothing_and_never_less(clock, told, forecast):
    forecast.plan("a", 1)
    work(clock, forecast, "a", 3, 1.0)
    assert [total - done for done, total, _ in told] == [0, 0, 0]


def test_other_work_tells_its_own_time_and_is_no_price(clock, told, forecast):
    forecast.plan("a", 2)
    work(clock, forecast, "a", 1, 1.0)
    clock.seconds += 50.0
    forecast.within(7.0, "inside")
    assert told[-1] == (51_000, 59_000, "inside")
    work(clock, forecast, "a", 1, 1.0)
    assert forecast.left() == 0
    assert told[-1][:2] == (52_000, 52_000)


def test_nothing_is_told_where_nobody_listens(clock):
    forecast = Forecast(None, clock)
    forecast.plan("a", 2)
    work(clock, forecast, "a", 1, 1.0)
    assert forecast.left() == 1.0


def test_a_bar_says_how_long_it_will_take(capsys):
    with progress_bar(True) as tick:
        tick(1000, 4000, "trial 1")
        time.sleep(0.2)
        tick(2000, 64_000, "trial 2")
    shown = capsys.readouterr().err
    assert "01:02 left, trial 2" in shown
    assert "3%" in shown


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_the_time_that_is_told_is_the_time_it_takes(digits_network, engine):
    """Within a factor of two, on a machine that does other things; the benchmark of growth holds it to 1.5."""
    model, images, _ = digits_network
    told = []

    def slowly(network, inputs, target):
        time.sleep(0.02)
        inputs = inputs.clone().requires_grad_()
        return torch.autograd.grad(network(inputs).gather(1, target[:, None]).sum(), inputs)[0]

    def heard(done, total, label):
        told.append((time.perf_counter(), (total - done) / 1000))

    options = {"methods": {"slowly": slowly, "gradient": "gradient"}, "trials": 6, "engine": engine}
    parameter_randomization_test(model, images[:16], progress=heard, **options)
    begun, ended = told[0][0], told[-1][0]
    for share in (0.25, 0.5, 0.75):
        when, left = [each for each in told if each[0] <= begun + share * (ended - begun)][-1]
        assert 0.5 <= left / (ended - when) <= 2
