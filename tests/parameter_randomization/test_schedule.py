"""How many trials are walked, and what is said where time allowed no more."""

import pytest
import torch
from made_trainings import few_digits

from lightning_sanity import Criterion, Outcome, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.parameter_randomization.schedule import AUTO_TRIALS

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tested():
    """The test of a network on digits, with a threshold that the gradient's index straddles after five trials."""
    torch.manual_seed(0)
    model, (images, labels) = demo.DigitsClassifier().eval(), next(iter(few_digits(64, 6)[0]))
    given = {"methods": "gradient", "max_steps": 2, "repeats": 1, "progress": False}

    def run(**changes):
        return parameter_randomization_test(model, images[:6], labels[:6], **{**given, **changes})

    given["criterion"] = Criterion(run(trials=5).verdicts["gradient"].psi)
    return run


def test_an_open_verdict_gets_more_trials_where_there_is_time(tested):
    found = tested(trials="auto", extend_within=1000.0)
    assert found.settings["trials_run"]["gradient"] > AUTO_TRIALS[0]
    assert found.settings["trials_run"] == tested(trials="auto").settings["trials_run"]


def test_an_open_verdict_without_time_says_what_is_missing(tested):
    found, five = tested(trials="auto", extend_within=1e-6), tested(trials=5)
    assert set(found.settings["trials_run"].values()) == {5}
    assert torch.equal(found.curves["gradient", "spearman"].values, five.curves["gradient", "spearman"].values)
    verdict = found.verdicts["gradient"]
    assert (verdict.outcome, verdict.psi_low) == (Outcome.INCONCLUSIVE, five.verdicts["gradient"].psi_low)
    says = "5 more trials, which could decide it, would have taken about"
    assert says in verdict.reason
    assert "no time was left for them" in verdict.reason
    assert any(says in note for note in found.coverage.notes)
    assert found.settings["thinned"] == {}


def test_a_verdict_that_is_clear_says_nothing_of_time(tested):
    found = tested(trials="auto", extend_within=1e-6, criterion=Criterion(0.01))
    assert "would have taken" not in " ".join(found.coverage.notes)
