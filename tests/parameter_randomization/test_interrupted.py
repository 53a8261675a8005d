"""Ctrl-C in a long test: what whole trials gave can be had, and it never passes for the whole."""

import pytest
import torch
from torch import nn

from lightning_sanity import Outcome, SanityResult, parameter_randomization_test
from lightning_sanity.result.evidence import judged_anew


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 3)).eval()
    return model, torch.randn(12, 16)


def ran(problem, progress=False, **changes):
    given = {"methods": "gradient", "trials": 4, "pictures": False, "progress": progress}
    return parameter_randomization_test(*problem, **given | changes)


def after(whole):
    """Ctrl-C in the middle of the trial after so many."""

    def progress(done, total, label):
        if label.startswith(f"trial {whole + 1},") and "gradient" in label:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_whole_trials_are_kept_as_they_are(problem, engine):
    partly = ran(problem, after(2), on_interrupt="return", engine=engine)
    whole = ran(problem, engine=engine)
    assert partly.curves.keys() == whole.curves.keys()
    for key, curve in partly.curves.items():
        assert len(curve.values) == 2
        assert torch.allclose(curve.values, whole.curves[key].values[:2], equal_nan=True)


def test_no_method_passes_by_fewer_trials_than_asked_not_even_judged_anew(problem, tmp_path):
    partly = ran(problem, after(3), on_interrupt="return")
    assert not partly.valid
    assert "interrupted: 3 of 4 trials" in partly.validity
    assert any("interrupted: 3 of 4 trials" in note for note in partly.coverage.notes)
    partly.to_json(tmp_path / "partly.json")
    read = SanityResult.from_json(tmp_path / "partly.json")
    for verdicts in (partly.verdicts, judged_anew(read)):
        assert {verdict.outcome for verdict in verdicts.values()} == {Outcome.INCONCLUSIVE}


def test_trials_that_are_added_as_needed_stop_there(problem):
    partly = ran(problem, after(4), on_interrupt="return", trials="auto")
    assert {len(curve.values) for curve in partly.curves.values()} == {4}


@pytest.mark.parametrize(("whole", "how"), [(0, "return"), (2, "raise")])
def test_without_a_whole_trial_or_unless_asked_it_is_an_interrupt_as_any(problem, whole, how):
    before = {name: value.clone() for name, value in problem[0].state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        ran(problem, after(whole), on_interrupt=how)
    assert all(torch.equal(value, before[name]) for name, value in problem[0].state_dict().items())


def test_another_word_is_refused(problem):
    with pytest.raises(ValueError, match="on_interrupt"):
        ran(problem, on_interrupt="ignore")
