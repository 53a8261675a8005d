"""What the callback says, where, and how often."""

import io
import re
import sys
import warnings
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from made_first_runs import Small, patches, quick_trainer
from made_results import FAILING, OPEN, PASSING, made

from lightning_sanity import SaliencySanityCallback, SanityCheckFailed
from lightning_sanity.callback.narration import Narration, say, warn

MIXED = {"gradcam": PASSING, "guided_backprop": FAILING, "occlusion": OPEN}


class Backbone(Small):
    """Its features are computed under ``no_grad``, as in linear probing."""

    def forward(self, images):
        with torch.no_grad():
            features = self.net[:3](images)
        return self.net[3](features)


class Crashing(Small):
    def forward(self, images):
        if not self.training and not torch.is_grad_enabled():
            return super().forward(images)
        if not self.training:
            raise RuntimeError("no explanations today")
        return super().forward(images)


def callback(methods=("gradient",), **changes):
    given = {"probe": 8, "trials": 2, "repeats": 1, "log_images": False, "report": False, "controls": False}
    return SaliencySanityCallback(methods, **{**given, **changes})


@pytest.fixture(autouse=True)
def _few_batches():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*number of training batches|You defined a `validation_step` but have no")
        yield


def said(found):
    return [str(one.message) for one in found if "randomization test" in str(one.message)]


# ------------------------------------------------------------------------------------------------------- by itself


def test_a_doubt_about_a_method_is_said_once_in_a_run():
    narration = Narration("sanity", verbose=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for step in (4, 8, 12):
            narration.measured(replace(made(MIXED), step=step), list(MIXED))
    assert len(said(found)) == 2
    assert said(found)[0].startswith("saliency maps failed the randomization test at step 4: guided_backprop: the map")
    assert said(found)[1].startswith("the randomization test is inconclusive at step 4: occlusion: PSI")


def test_another_kind_of_doubt_about_the_same_method_is_news():
    narration = Narration("sanity", verbose=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for mean in (OPEN, FAILING, OPEN, FAILING):
            narration.measured(made({"gradcam": mean}), ["gradcam"])
    assert [text.split(" at step")[0] for text in said(found)] == [
        "the randomization test is inconclusive",
        "saliency maps failed the randomization test",
    ]


def test_an_invalid_run_is_said_once_and_no_method_is_blamed():
    narration = Narration("sanity", verbose=False)
    result = replace(made(MIXED), valid=False, validity="the control 'input_copy' passed")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        narration.measured(result, list(MIXED))
        narration.measured(result, list(MIXED))
    (words,) = said(found)
    assert words == "no verdict of the randomization test stands at step 7: the control 'input_copy' passed"


def test_controls_are_no_news():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Narration("sanity", verbose=False).measured(made(), ["gradcam"])


def test_the_same_warning_of_a_second_training_in_one_process_is_shown(capsys, monkeypatch):
    def show(*parts, **_):
        sys.stderr.write(warnings.formatwarning(*parts[:4]))

    with warnings.catch_warnings():
        monkeypatch.setattr(warnings, "showwarning", show)  # as Python does where no test is listening
        warnings.resetwarnings()
        warnings.simplefilter("default")
        warn("maps look alike")
        warn("maps look alike")
    shown = capsys.readouterr().err
    assert shown == "UserWarning: maps look alike\n" * 2  # without a file, a line number or a line of code


def test_the_users_filters_decide():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "maps look")
        warn("maps look alike")
        with pytest.raises(UserWarning, match="others do"):
            warn("others do")


def test_warnings_of_others_keep_their_form(capsys):
    usual = warnings.formatwarning
    with pytest.warns(UserWarning, match="alike"):
        warn("maps look alike")
    assert warnings.formatwarning is usual


def test_a_terminal_without_some_letter_gets_another_one(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="strict"))
    say("\N{CHECK MARK} PASS")
    assert raw.getvalue() == b"? PASS\n"


def test_a_closed_terminal_costs_nothing(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    say("is anybody there?")


# ----------------------------------------------------------------------------------------------------- in a Trainer


def test_fit_ends_with_the_table_the_legend_and_the_report(tmp_path, capsys):
    quick_trainer(tmp_path, callback(report=True)).fit(Small(), patches(), patches())
    shown = capsys.readouterr().out
    assert shown.count("sanity, step ") == 2  # a line per validation
    table = shown.split("\nsanity: ")[1]
    for words in ("gradient", "PSI [95 %]", "passes from 0.65", "above 1"):
        assert words in table
    assert f"report: {tmp_path / 'sanity' / 'report.html'}" in table


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_end_with_the_table_once(tmp_path, capsys, stage):
    getattr(quick_trainer(tmp_path, callback()), stage)(Small(), patches(), verbose=False)
    assert capsys.readouterr().out.count("PSI [95 %]") == 1


def test_an_interrupted_training_shows_what_it_had(tmp_path, capsys):
    class Press(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        quick_trainer(tmp_path, callback(), Press()).fit(Small(), patches(), patches())
    assert capsys.readouterr().out.count("PSI [95 %]") == 1


def test_the_table_comes_before_the_error_that_on_fail_asks_for(tmp_path, capsys):
    with pytest.raises(SanityCheckFailed, match="gradient is INCONCLUSIVE"):
        quick_trainer(tmp_path, callback(on_fail="raise", trials=1)).fit(Small(), patches(), patches())
    assert capsys.readouterr().out.count("PSI [95 %]") == 1


def test_not_verbose_prints_nothing_and_still_warns(tmp_path, capsys):
    with pytest.warns(UserWarning, match="the randomization test is inconclusive at step 4: gradient: one trial"):
        quick_trainer(tmp_path, callback(trials=1, verbose=False)).fit(Small(), patches(), patches())
    assert "sanity" not in capsys.readouterr().out


def test_a_second_instance_is_told_by_its_name(tmp_path, capsys):
    quick_trainer(tmp_path, callback(name="strict")).fit(Small(), patches(), patches())
    assert "sanity/strict, step 4: PSI: gradient" in capsys.readouterr().out


def test_frozen_features_are_reported_at_once_with_the_cause(tmp_path):
    methods = ("gradient", "guided_backprop")
    with pytest.warns(UserWarning, match="the randomization test is inconclusive at step 4") as found:
        quick_trainer(tmp_path, callback(methods)).fit(Backbone(), patches(), patches())
    assert len(said(found)) == 1
    assert all(name in said(found)[0] for name in methods)


def test_an_error_of_every_validation_is_warned_of_once_and_stands_at_the_end(tmp_path, capsys):
    run = quick_trainer(tmp_path, callback(), max_epochs=3)
    with pytest.warns(UserWarning, match="could not be run; training goes on.*no explanations today") as found:
        run.fit(Crashing(), patches(), patches())
    assert len(said(found)) == 1
    shown = capsys.readouterr().out
    assert shown.count("not measured: ") == 3
    assert "sanity: no result: " in shown


def test_a_line_stands_beside_the_progress_bar_and_no_bar_stays_in_it(tmp_path, capsys):
    run = quick_trainer(tmp_path, callback(), TQDMProgressBar(leave=False), enable_progress_bar=True)
    run.fit(Small(), patches(), patches())
    shown = capsys.readouterr().out
    line = next(text for text in shown.split("\n") if "sanity, step 4:" in text)
    assert re.sub(r"\033\[A", "", line.split("\r")[-1]).startswith("sanity, step 4: PSI: gradient ")


# ------------------------------------------------------------------------------------------------- never measured

NEVER = [
    ({}, False, "fit() was given no validation loader: pass val_dataloaders="),
    ({"limit_val_batches": 0}, True, "limit_val_batches=0 allows no validation"),
    ({"check_val_every_n_epoch": 5}, True, "check_val_every_n_epoch=5 the first validation comes after 20 training"),
    ({"val_check_interval": 100, "check_val_every_n_epoch": None}, True, "val_check_interval=100 the first validation"),
    ({"max_epochs": -1, "max_steps": 3}, True, "comes after 4 training batches, and training ends after 3"),
    (
        {"max_epochs": -1, "max_steps": 1, "accumulate_grad_batches": 2},
        True,
        "after 4 training batches, and .* after 2",
    ),
]


@pytest.mark.parametrize(("settings", "loader", "why"), NEVER)
def test_a_training_that_will_never_be_measured_says_so_at_its_start(tmp_path, settings, loader, why):
    early = []

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            early.append(measured.unmeasured)

    measured = callback()
    run = quick_trainer(tmp_path, measured, Watch(), **settings)
    with pytest.warns(UserWarning, match="will measure nothing: ") as found:
        run.fit(Small(), patches(), patches() if loader else None)
    (words,) = said(found)  # not again at the end
    assert all(part in words for part in why.split(" .* "))
    assert early[0] is not None
    assert early[0] in words
    assert measured.result is None
    assert measured.unmeasured == early[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": 8, "check_val_every_n_epoch": None},
        {"val_check_interval": 0.25},
        {"max_epochs": -1, "max_steps": 4},
        {"max_epochs": -1, "max_steps": 2, "accumulate_grad_batches": 2},
        {"fast_dev_run": True},
    ],
)
def test_a_training_that_validates_just_in_time_is_not_warned(tmp_path, settings):
    measured = callback()
    quick_trainer(tmp_path, measured, **settings).fit(Small(), patches(), patches())
    assert measured.result is not None
    assert measured.unmeasured is None


def test_a_model_without_a_validation_step_is_named(tmp_path):
    class Without(Small):
        validation_step = pl.LightningModule.validation_step

    warnings.filterwarnings("ignore", "You passed in a `val_dataloader`|.*no `validation_step`")
    with pytest.warns(UserWarning, match="Without has no validation_step"):
        quick_trainer(tmp_path, callback()).fit(Without(), patches(), patches())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_loop_that_is_skipped_says_at_the_end_that_nothing_was_measured(tmp_path, stage):
    measured = callback(on_fail="raise")
    run = quick_trainer(tmp_path, measured, **{f"limit_{stage[:4].replace('vali', 'val')}_batches": 0})
    with (
        pytest.warns(UserWarning, match="gave no result for these weights: no validation was run to its end"),
        pytest.raises(SanityCheckFailed, match="never gave a result"),
    ):
        getattr(run, stage)(Small(), patches(), verbose=False)


def test_a_training_that_stops_before_its_first_validation_says_so(tmp_path):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trainer.should_stop = True
            trainer.limit_val_batches = 0

    with pytest.warns(UserWarning, match="gave no result for these weights: no validation was run to its end"):
        quick_trainer(tmp_path, callback(), Stop()).fit(Small(), patches(), patches())


@pytest.mark.parametrize(("settings", "loader", "why"), NEVER[:3])
def test_on_fail_raise_names_why_nothing_was_measured(tmp_path, settings, loader, why):
    run = quick_trainer(tmp_path, callback(on_fail="raise"), **settings)
    with pytest.warns(UserWarning, match="will measure nothing"), pytest.raises(SanityCheckFailed) as raised:
        run.fit(Small(), patches(), patches() if loader else None)
    assert why in str(raised.value)
