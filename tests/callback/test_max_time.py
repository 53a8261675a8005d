import time

import pytest

from lightning_sanity.callback.max_time import LEAST, LONGEST_END, SHARE, Allowance, Parts


class Clock:
    """Time that passes only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def allowance(limit, *, drawing=1.0, labels=0.0, rest=0.5, **options):
    made = Allowance(limit, **options)
    made.takes |= {"drawing": drawing, "labels": labels, "rest": rest}
    return made


def measured(made, clock, seconds):
    """One measurement that takes so long; what it was allowed."""
    parts = made.divide()
    with made.timing("test"):
        clock.wait(seconds)
    made.end({})
    return parts


def test_without_a_limit_everything_is_allowed(clock):
    made = Allowance(None)
    made.begin(training=True)
    assert made.affords()
    assert made.divide() == Parts(None, True, True, decide=False)
    assert not made.exceeded()


def test_figures_that_take_a_small_part_of_the_time_are_drawn_and_paid_for(clock):
    made = allowance(10.0, drawing=1.0, rest=0.5)
    made.begin(training=True)
    assert made.divide() == Parts(test=8.5, draw=True, compare=True, decide=False)


def test_what_would_take_a_large_part_of_the_time_waits(clock):
    made = allowance(10.0, drawing=5.0, labels=6.0, rest=0.5)
    made.begin(training=True)
    assert made.divide() == Parts(9.5, draw=False, compare=False, decide=False)


def test_figures_do_not_wait_where_no_later_occasion_comes(clock):
    made = allowance(10.0, drawing=5.0, rest=0.5)
    made.begin(training=False)
    assert made.divide() == Parts(4.5, draw=True, compare=True)


def test_what_went_before_the_test_counts_unless_it_is_done_once(clock):
    made = allowance(10.0, drawing=1.0, rest=0.5)
    for free, left in ((False, 5.5), (True, 8.5)):
        made.begin(training=True)
        clock.wait(3.0)
        assert made.divide(free=free).test == left
        assert not made.exceeded()
    clock.wait(11.0)
    assert made.exceeded()


def test_a_share_is_one_of_the_training_time_and_what_is_left_of_it_is_saved(clock):
    made = allowance(0.1, drawing=0.0, rest=0.0)
    made.start()
    clock.wait(100.0)
    made.begin(training=True)
    assert measured(made, clock, 4.0).test == pytest.approx(10.0)
    clock.wait(100.0)
    made.begin(training=True)
    assert made.divide().test == pytest.approx(16.0)


def test_a_share_has_no_meaning_outside_training(clock):
    made = allowance(0.1)
    clock.wait(100.0)
    made.begin(training=False)
    assert made.affords()
    assert made.divide() == Parts()


def test_in_the_long_run_a_share_is_kept_although_the_least_test_takes_more(clock):
    made, spent, tests = allowance(0.03, drawing=0.0, rest=0.0), 0.0, 0
    made.start()
    begun = clock.now
    for _ in range(40):
        clock.wait(33.0)
        made.begin(training=True)
        if made.affords():
            limit = made.divide().test
            with made.timing("test"):
                clock.wait(max(1.8, limit))  # as much as it may, and never less than the least
            spent, tests = spent + max(1.8, limit), tests + 1
            made.end({})
    assert spent <= 0.03 * (clock.now - begun)
    assert 15 <= tests < 40


def test_where_every_validation_counts_none_goes_by_and_nothing_is_owed(clock):
    made = allowance(0.01, drawing=0.0, rest=0.0, every=True)
    made.start()
    for _ in range(3):
        clock.wait(100.0)
        made.begin(training=True)
        assert made.affords()
        assert measured(made, clock, 5.0).test == pytest.approx(1.0)


def test_what_follows_the_test_is_learned(clock):
    made = allowance(10.0)
    made.begin(training=True)
    with made.timing("test"):
        clock.wait(2.0)
    with made.timing("drawing"):
        clock.wait(3.0)
    clock.wait(0.25)
    made.end({})
    assert made.takes == {"test": 2.0, "drawing": 3.0, "labels": 0.0, "rest": 0.25}


# --------------------------------------------------------------------------------------------------- what "auto" does


def through(made, clock, epochs, seconds, takes, thinned=()):
    """The epochs that are measured, with what each may take and takes."""
    found = []
    made.start()
    for epoch in range(epochs):
        clock.wait(seconds)
        made.begin(training=True, last=epoch == epochs - 1)
        if made.affords():
            limit = made.divide().test
            with made.timing("test"):
                clock.wait(takes if limit is None else min(takes, limit))
            found.append((epoch, limit))
            made.end(dict(thinned) if limit is not None and limit < takes else {})
    return found


def test_by_default_the_first_look_is_short_and_the_last_is_made_in_full(clock):
    made = allowance("auto", drawing=0.0, rest=0.0)
    found = through(made, clock, 10, 33.0, takes=4.0)
    assert [epoch for epoch, _ in found] == [0, 7, 9]
    assert found[0][1] == pytest.approx(10.0)
    assert found[-1][1] is None
    assert len(found) * 4.0 <= SHARE * 10 * 33.0


@pytest.mark.parametrize("takes", [1.0, 3.0, 8.0, 20.0])
def test_by_default_a_long_training_pays_its_share_and_no_more(clock, takes):
    made = allowance("auto", drawing=0.0, rest=0.0)
    begun = clock.now
    found = through(made, clock, 100, 30.0, takes, thinned={"trials": [1, 3]})
    trained = 100 * 30.0
    assert clock.now - begun - trained <= SHARE * trained
    assert len(found) > 3


def test_what_the_last_measurement_will_take_is_kept_back(clock):
    made = allowance("auto", drawing=0.0, rest=0.0)
    made.start()
    clock.wait(1000.0)
    made.begin(training=True)
    assert measured(made, clock, 8.0).test == pytest.approx(50.0)
    clock.wait(100.0)
    made.begin(training=True)
    assert made.affords()
    assert made.divide().test == pytest.approx(50.0 - 8.0 + 5.0 - 8.0)


def test_a_thinned_look_tells_what_a_whole_one_would_take(clock):
    made = allowance("auto", drawing=0.0, rest=0.0)
    made.start()
    clock.wait(20.0)
    made.begin(training=True)
    made.divide()
    with made.timing("test"):
        clock.wait(10.0)
    made.end({"trials": [1, 3], "depths": [6, 12]})
    assert made.due  # a full one, unless training goes on
    clock.wait(1340.0)  # pays for 68 - 10 s, which is less than 60 s kept back and 10 s to spend
    made.begin(training=True)
    assert not made.affords()
    clock.wait(300.0)
    made.begin(training=True)
    assert made.affords()


def test_where_every_validation_counts_the_default_is_no_limit(clock):
    made = allowance("auto", every=True)
    made.start()
    for _ in range(3):
        clock.wait(1.0)
        made.begin(training=True)
        assert made.affords()
        assert measured(made, clock, 5.0) == Parts(decide=False)


def test_outside_training_the_default_is_no_limit(clock):
    made = allowance("auto")
    made.begin(training=False)
    assert made.affords()
    assert made.divide() == Parts()


def test_a_measurement_that_gave_no_result_is_made_again(clock):
    made = allowance("auto", drawing=0.0, rest=0.0)
    made.start()
    for _ in range(2):
        clock.wait(1.0)
        made.begin(training=True)
        assert made.affords()
        assert made.divide().test == pytest.approx(10.0)
        made.end(None)


@pytest.mark.parametrize(("trained", "done", "limit"), [(20.0, 0.1, 4.0), (20.0, 0.0, 10.0), (1.0, 0.5, 0.4 * LEAST)])
def test_the_first_look_takes_a_part_of_what_training_is_going_to_allow(clock, trained, done, limit):
    made = allowance("auto", drawing=0.0, rest=0.0)
    made.start()
    clock.wait(trained)
    made.begin(training=True, done=done)
    assert made.affords()
    assert made.divide() == Parts(pytest.approx(limit), decide=False)


def test_the_first_look_is_drawn_although_it_takes_a_large_part(clock):
    made = allowance("auto", drawing=2.0, rest=0.0)
    made.start()
    clock.wait(10.0)
    for draw in (True, False):
        made.begin(training=True, done=0.5)
        assert made.divide().draw is draw
        clock.wait(100.0)
        assert made.exceeded() is not draw
        made.end({})
        made.saved = 2.0


def ending(clock, *, trained, takes, watched=1.0):
    """What training may end with, after one look in its middle."""
    made = allowance("auto", drawing=0.0, rest=0.0, watched=watched)
    made.start()
    clock.wait(trained / 2)
    made.begin(training=True)
    made.divide()
    with made.timing("test"):
        clock.wait(takes)
    made.end({})
    clock.wait(trained / 2)
    made.begin(training=True, last=True, done=1.0)
    assert made.affords()
    return made.divide()


@pytest.mark.parametrize(
    ("trained", "takes", "extend"),
    [(1000.0, 8.0, 42.0), (20.0, 3.0, LEAST - 3.0), (20.0, 9.0, 0.0)],
    ids=["what is saved", "what any training may take", "nothing is left"],
)
def test_training_ends_with_a_whole_measurement_and_with_more_trials_as_far_as_there_is_time(
    clock, trained, takes, extend
):
    assert ending(clock, trained=trained, takes=takes) == Parts(extend=pytest.approx(extend))


def test_only_what_would_take_very_long_is_thinned_at_the_end(clock):
    assert ending(clock, trained=20.0, takes=LONGEST_END - 1.0).test is None
    assert ending(clock, trained=20.0, takes=LONGEST_END - 1.0, watched=0.6).test == pytest.approx(LONGEST_END)
    assert ending(clock, trained=10_000.0, takes=LONGEST_END + 1.0).test is None


def test_what_it_took_is_told_beside_what_training_took(clock):
    made = allowance("auto", drawing=0.0, rest=0.0)
    assert made.account() is None
    made.start()
    for _ in range(2):
        clock.wait(100.0)
        made.begin(training=True)
        measured(made, clock, 4.0)
    assert made.account() == "measured for 8.0 s beside 200 s of training (4.0%)"
    assert made.account(open_verdicts=True).endswith(
        "; max_time=None lets an open verdict take the trials that it needs"
    )
    made.begin(training=True, last=True)
    measured(made, clock, 4.0)
    assert "(6.0%), more than 5% because what training ends with is measured in any case" in made.account()


@pytest.mark.parametrize("options", [{"limit": None}, {"limit": "auto", "every": True}])
def test_no_limit_is_named_where_there_is_none(clock, options):
    made = allowance(**options)
    made.start()
    clock.wait(1.0)
    made.begin(training=True)
    measured(made, clock, 4.0)
    assert made.account(open_verdicts=True) == "measured for 4.0 s beside 1 s of training (400.0%)"
