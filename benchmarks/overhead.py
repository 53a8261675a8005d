"""Question: what does the callback cost beside the training that it watches?

A ResNet-18 trained by Lightning on 5,000 patches of scikit-image's photographs, 32 x 32 pixels, batches of 64, with
validation, TensorBoard and the callback: 3 methods and 3 controls, 16 samples, 3 trials, the report and the figures.
Once without a limit and once with 3 % of an epoch as ``max_time``, in seconds. What counts is the second of two
validations; the first also forms the probe and imports what draws. An epoch is the median of some of its steps times
their number, plus its validation. ``--full`` trains whole epochs instead, without the callback and with the callback as
it comes, whose account saves up 5 % of the training time: what counts is all it took over the whole training, the first
and the last measurement included, and what that is of ten epochs if fewer were trained: the others then cost what was
saved up at most. Weights are asserted to be the same.

    python benchmarks/overhead.py [--steps 20] [--json]
    python benchmarks/overhead.py --full [--epochs 10] [--json]
"""

from __future__ import annotations

import logging
import math
import statistics
import tempfile

import lightning.pytorch as pl
import torch
from measuring import now, parser, publish
from measuring.studied import PHOTOGRAPHS, photographs
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18

from lightning_sanity import SaliencySanityCallback

IMAGES, BATCH, SHARE, WHOLE = 5000, 64, 0.03, 10


class Classifier(pl.LightningModule):
    """A ResNet-18 that names the photograph a patch is from."""

    def __init__(self):
        super().__init__()
        self.network = resnet18(num_classes=len(PHOTOGRAPHS))

    def forward(self, images):
        """Class scores."""
        return self.network(images)

    def training_step(self, batch, batch_idx):
        """Cross-entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        """Accuracy."""
        self.log("val/accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)


class Clock(pl.Callback):
    """Seconds of every training step, and of the validation up to where other callbacks come in."""

    def __init__(self):
        self.steps, self.validation = [], 0.0

    def on_train_batch_start(self, *_):
        """A step begins."""
        self._begun = now()

    def on_train_batch_end(self, *_):
        """It is over."""
        self.steps.append(now() - self._begun)

    def on_validation_start(self, *_):
        """Validation begins."""
        self._begun = now()

    def on_validation_epoch_end(self, *_):
        """All its batches are through."""
        self.validation = now() - self._begun


class Watch(SaliencySanityCallback):
    """The callback, timed from outside."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.seconds, self.ending, self.measured = [], 0.0, 0

    def on_validation_epoch_end(self, *arguments):
        """All it does while training: measure, log, draw, write."""
        started, before = now(), self.result
        super().on_validation_epoch_end(*arguments)
        self.seconds.append(now() - started)
        self.measured += self.result is not before

    def on_fit_end(self, *arguments):
        """What was put off."""
        started = now()
        super().on_fit_end(*arguments)
        self.ending = now() - started


def data(images):
    """Training and validation set of real pictures."""
    training, validation = photographs(side=32, per_class=math.ceil(images / len(PHOTOGRAPHS)))
    return TensorDataset(*(tensor[:images] for tensor in training)), TensorDataset(*validation)


def fitted(sets, watch=None, epochs=2, **limits):
    """A trained model, the clock of its epochs, and the seconds of ``fit``."""
    pl.seed_everything(0, verbose=False)
    clock, model = Clock(), Classifier()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [clock] if watch is None else [clock, watch]
        where = {"default_root_dir": folder, "accelerator": "cpu", "num_sanity_val_steps": 0}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **where, **quiet, **limits)
        started = now()
        trainer.fit(model, DataLoader(sets[0], BATCH, shuffle=True), DataLoader(sets[1], BATCH))
    return model, clock, now() - started


def assert_equal(one, other):
    """The callback leaves the training as it is, to the last bit."""
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"the callback changed {name}"


def described(watch, epoch, max_time, full):
    """What the callback did and cost."""
    first, *_, last = watch.seconds
    takes = (sum(watch.seconds) + watch.ending) / max(len(watch.seconds), WHOLE) if full else last
    row = {"max_time": max_time, "epoch_seconds": epoch, "callback_seconds": takes, "full": full}
    row |= {"first_seconds": first, "measured": watch.measured, "validations": len(watch.seconds)}
    row |= {"share": takes / epoch, "unmeasured": watch.unmeasured, "seconds_at_the_end": watch.ending}
    if watch.result is None:
        return row
    settings = watch.result.settings
    row |= {"units": len(watch.result.units), "thinned": settings["thinned"]}
    return row | {name: settings[name] for name in ("methods", "controls", "samples", "trials_run", "engine")}


def line(row):
    how = "an epoch" if row["full"] else "an epoch, by a sample of its steps,"
    limit = "as it comes" if row["full"] else f"max_time={row['max_time']}"
    goal = "5% of ten epochs" if row["full"] else f"{SHARE:.0%}"
    cost = f"{row['callback_seconds']:.1f} s of {row['epoch_seconds']:.0f} s, {row['share']:.1%} (goal {goal})"
    cost += f", measured at {row['measured']} of {row['validations']} validations"
    cost += f", the first time {row['first_seconds']:.1f} s, after training {row['seconds_at_the_end']:.1f} s"
    if row["unmeasured"]:
        return f"{limit}: the callback takes {cost} and has no result: {row['unmeasured']}"
    thinned = f"thinned {row['thinned']}" if row["thinned"] else "nothing thinned"
    followed = len(row["trials_run"]), len(row["methods"]) + len(row["controls"])
    chosen = "{} of {} methods and controls, ".format(*followed)
    chosen += f"{row['units']} depths, {max(row['trials_run'].values())} trials, {row['samples']} samples; {thinned}"
    return f"{limit}: {how} takes {row['epoch_seconds']:.0f} s, the callback {cost}\n    {chosen}"


def main():
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--steps", type=int, default=20, help="training steps that are timed")
    flags.add_argument("--full", action="store_true", help="train whole epochs")
    flags.add_argument("--epochs", type=int, default=10, help="how many, with --full")
    given = flags.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.equality_only:
        sets, limits = data(2 * BATCH), {"limit_train_batches": 2, "limit_val_batches": 1}
        watch = Watch("gradient", probe=2, trials=1, max_steps=2)
        assert_equal(fitted(sets, **limits)[0], fitted(sets, watch, **limits)[0])
        assert watch.result is not None, watch.unmeasured
        print("the callback leaves the trained weights as they are")
        return
    sets = data(IMAGES)
    limits = {"epochs": given.epochs} if given.full else {"limit_train_batches": given.steps}
    without, clock, seconds = fitted(sets, **limits)
    step = statistics.median(clock.steps)
    epoch = seconds / given.epochs if given.full else step * math.ceil(IMAGES / BATCH) + clock.validation
    rows = []
    # A sample of steps would cut a share of the training time short: there it is given in seconds, at least 1.
    for max_time in ("auto",) if given.full else (None, round(max(1.0, SHARE * epoch), 1)):
        watch = Watch(max_time=max_time)
        assert_equal(without, fitted(sets, watch, **limits)[0])
        rows.append(described(watch, epoch, max_time, given.full))
    publish(given, rows, line)


if __name__ == "__main__":
    main()
