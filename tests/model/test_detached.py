"""Nothing that a copy does reaches the Trainer or the user's own bookkeeping."""

import types
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_sanity import parameter_randomization_test
from lightning_sanity.model.clone import clone
from lightning_sanity.model.detached import stand_in_for


class Plain(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, images):
        return self.head(self.body(images))


class Logging(Plain):
    def forward(self, images):
        scores = super().forward(images)
        self.log("norm", scores.norm())
        self.log_dict({"mean": scores.mean()})
        self.print("scored")
        self.logger.log_metrics({"norm": 1.0})
        for logger in self.loggers:
            logger.log_metrics({"norm": 1.0})
        return scores


class Recorder:
    """A logger, a callback, or any other part of a Trainer that remembers."""

    def __init__(self):
        self.told = []

    def log_metrics(self, metrics):
        self.told.append(metrics)

    hear = log_metrics


def attached(model):
    """The model as inside a Trainer; what the Trainer is told."""
    logger, callback = Recorder(), Recorder()
    model._trainer = types.SimpleNamespace(
        loggers=[logger], logger=logger, callbacks=[callback], global_step=3, is_global_zero=True
    )
    return model, logger, callback


@pytest.mark.parametrize("face", [clone, stand_in_for])
def test_logging_in_forward_says_nothing(face, batch):
    model, logger, _ = attached(Logging())
    assert face(model)(torch.randn(2, 64)).shape == (2, 4)
    assert logger.told == []
    assert "log" not in vars(model)


@pytest.mark.parametrize("face", [clone, stand_in_for])
def test_a_callback_that_the_model_holds_hears_nothing(face):
    model, _, callback = attached(Plain())
    model.listener = callback
    model.head.register_forward_hook(lambda module, given, output: callback.hear(output))
    model.body.register_forward_hook(partial(lambda told, *given: told.hear(given), callback))
    copied = face(model)
    copied.listener.hear("directly")
    copied(torch.randn(2, 64))
    assert callback.told == []


@pytest.mark.parametrize("face", [clone, stand_in_for])
def test_a_hook_that_refers_to_the_model_refers_to_the_copy(face):
    model, _, _ = attached(Plain())

    def act(module, given, output):
        model.log("norm", output.norm())
        model.seen = output
        return output * model.scale

    model.scale = 2.0
    model.head.register_forward_hook(act)
    copied = face(model)
    copied.scale = 3.0
    images = torch.randn(2, 64)
    expected = 3 * nn.functional.linear(model.body(images), model.head.weight, model.head.bias)
    torch.testing.assert_close(copied(images), expected)
    assert not hasattr(model, "seen")


def test_a_value_of_the_trainer_is_missed_and_not_invented():
    model, _, _ = attached(Plain())
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        clone(model).trainer.global_step  # noqa: B018


def test_a_stand_in_computes_with_the_very_weights(batch):
    model = Plain()
    copied, images = stand_in_for(model), torch.randn(2, 64)
    assert all(one is other for one, other in zip(copied.parameters(), model.parameters(), strict=True))
    assert torch.equal(copied(images), model(images))
    copied.body[1].note = "of the stand-in"
    assert not hasattr(model.body[1], "note")


def verdict_of(model, **changes):
    given = {"methods": "gradient", "trials": 1, "repeats": 1, "max_steps": 2, "controls": False, "progress": False}
    return parameter_randomization_test(model, torch.randn(4, 64), **{**given, **changes})


class Counter:
    def __init__(self):
        self.calls, self.kept = 0, []

    def __call__(self, module, given, output):
        self.calls += 1
        self.kept.append(output)


def counting(kept):
    def hook(module, given, output):
        kept.append(output)

    return hook


def test_hooks_that_only_look_are_left_out_and_named():
    model, counter, kept = Plain(), Counter(), []
    model.head.register_forward_hook(counter)
    model.body.register_forward_hook(counting(kept))
    model.body[1].register_forward_pre_hook(lambda module, given: kept.append(given))
    model(torch.randn(2, 64))
    result = verdict_of(model)
    assert (counter.calls, len(counter.kept), len(kept)) == (1, 1, 2)
    note = next(note for note in result.coverage.notes if "only look" in note)
    assert "Counter on 'head'" in note
    assert "counting.<locals>.hook on 'body'" in note
    assert len(model.head._forward_hooks) == len(model.body._forward_hooks) == 1


def scaling(module, given, output):
    return output * torch.arange(1.0, 5.0)


def in_place(module, given, output):
    output.mul_(torch.arange(1.0, 5.0))


def through_an_attribute(module, given):
    module.weight.data = module.stored * 2


@pytest.mark.parametrize("hook", [scaling, in_place])
def test_hooks_that_change_the_output_stay(hook):
    plain, hooked = Plain(), Plain()
    hooked.load_state_dict(plain.state_dict())
    hooked.head.register_forward_hook(hook)
    one, other = verdict_of(plain), verdict_of(hooked)
    assert not any("only look" in note for note in other.coverage.notes)
    assert not torch.equal(one.output_change.correlation, other.output_change.correlation)


def test_a_hook_whose_notes_the_model_reads_stays():
    class Reading(Plain):
        def __init__(self):
            super().__init__()
            self.features = []
            self.body.register_forward_hook(lambda module, given, output: features.append(output))
            features = self.features

        def forward(self, images):
            self.features.clear()
            self.body(images)
            return self.head(self.features[0])

    model = Reading()
    result = verdict_of(model)
    assert result.coverage.share == 1.0
    assert not any("only look" in note for note in result.coverage.notes)
    assert model.features == []


def test_a_counter_in_a_hook_that_acts_is_put_back():
    calls = []

    def act(module, given, output):
        calls.append(1)
        return 2 * output

    model = Plain()
    model.head.register_forward_hook(act)
    verdict_of(model)
    assert calls == []
