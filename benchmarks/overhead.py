"""Question: what does the callback cost beside the training that it watches?

A ResNet-18 trained by Lightning on 5,000 patches of scikit-image's photographs, 32 x 32 pixels, batches of 64, with
validation, checkpoints, TensorBoard and the callback: 3 methods and 4 controls, 16 samples, the report and the figures.
Once without a limit and once with 3 % of an epoch as ``max_time``, in seconds. What counts is the second of two
validations; the first also forms the probe and imports what draws. An epoch is the median of some of its steps times
their number, plus its validation. ``--full`` trains ten whole epochs instead, without the callback and with the
callback as it comes: what counts is all that any of its hooks took over the whole training, the probe, the first and
the last measurement, files, figures and digests of checkpoints included, beside what ``fit`` takes without it. Weights
are asserted to be the same, and that there was a verdict after the first epoch and after the last. ``--transfer`` is a
first fit in the shape of Lightning's example of transfer learning, with random weights: a ResNet-50 whose backbone is
frozen, one logit, five batches of eight an epoch. With ``--cpu-time`` the callback's account, too, goes by the time
that the process was at work.

    python benchmarks/overhead.py [--steps 20] [--json]
    python benchmarks/overhead.py --full [--epochs 10] [--images 5000] [--cpu-time] [--json]
    python benchmarks/overhead.py --transfer [--epochs 3] [--size 224] [--cpu-time] [--json]
"""

from __future__ import annotations

import logging
import math
import signal
import statistics
import tempfile
import time

import lightning.pytorch as pl
import torch
from measuring import now, parser, publish
from measuring.studied import PHOTOGRAPHS, photographs
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import resnet18, resnet50

from lightning_sanity import SaliencySanityCallback

IMAGES, BATCH, SHARE, GOAL = 5000, 64, 0.03, 0.05
HOOKS = (
    "setup",
    "on_fit_start",
    "on_train_start",
    "on_validation_batch_start",
    "on_validation_epoch_end",
    "on_save_checkpoint",
    "on_fit_end",
    "teardown",
)


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


class Transfer(Classifier):
    """A frozen ResNet-50 under a small head that is trained."""

    def __init__(self):
        pl.LightningModule.__init__(self)
        self.backbone = resnet50(weights=None).requires_grad_(False)
        self.backbone.fc = nn.Identity()
        widths = zip((2048, 256, 32), (256, 32, 1), strict=True)
        self.head = nn.Sequential(*(layer for sizes in widths for layer in (nn.Linear(*sizes), nn.ReLU())))[:-1]

    def forward(self, images):
        """One logit."""
        return self.head(self.backbone(images))[:, 0]

    def training_step(self, batch, batch_idx):
        """Binary cross-entropy."""
        return F.binary_cross_entropy_with_logits(self(batch[0]), (batch[1] % 2).float())

    def validation_step(self, batch, batch_idx):
        """Accuracy."""
        self.log("val/accuracy", ((self(batch[0]) > 0) == (batch[1] % 2 > 0)).float().mean())

    def configure_optimizers(self):
        """Adam, for what is trained."""
        return torch.optim.Adam(self.head.parameters(), 1e-3)


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
    """The callback, every hook of it timed from outside."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.hooks = {name: [] for name in HOOKS}
        self.drawing, self.found = [], {}
        for name in HOOKS:
            setattr(self, name, self._timed(name, getattr(self, name)))

    def _timed(self, name, hook):
        def act(trainer, *arguments, **named):
            started, before = now(), self.result
            try:
                return hook(trainer, *arguments, **named)
            finally:
                self.hooks[name].append(now() - started)
                if self.result is not None and self.result is not before:
                    self.found[len(self.hooks["on_validation_epoch_end"])] = self.result

        return act

    def _show(self, trainer):
        started = now()
        super()._show(trainer)
        self.drawing.append(now() - started)

    @property
    def seconds(self):
        """All that it took."""
        return sum(map(sum, self.hooks.values()))


def data(images):
    """Training and validation set of real pictures."""
    training, validation = photographs(side=32, per_class=math.ceil(images / len(PHOTOGRAPHS)))
    return TensorDataset(*(tensor[:images] for tensor in training)), TensorDataset(*validation)


def large(size):
    """Five batches of eight of them for training and for validation, of all kinds, enlarged."""
    sets = [(images[:: len(images) // 40][:40], labels[:: len(labels) // 40][:40]) for images, labels in photographs()]
    return [TensorDataset(F.interpolate(images, size=size, mode="bilinear"), labels) for images, labels in sets]


def fitted(sets, watch=None, epochs=2, kind=Classifier, batch=BATCH, **limits):
    """A trained model, the clock of its epochs, and the seconds of ``fit``."""
    pl.seed_everything(0, verbose=False)
    clock, model = Clock(), kind()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [clock] if watch is None else [clock, watch]
        where = {"default_root_dir": folder, "accelerator": "cpu", "num_sanity_val_steps": 0}
        trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, **where, **quiet, **limits)
        started = now()
        trainer.fit(model, DataLoader(sets[0], batch, shuffle=True), DataLoader(sets[1], batch))
    return model, clock, now() - started


def assert_equal(one, other):
    """The callback leaves the training as it is, to the last bit."""
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"the callback changed {name}"


def described(watch, epoch, seconds, max_time, full):
    """What the callback did and cost, beside an epoch or beside all of them."""
    looks = watch.hooks["on_validation_epoch_end"]
    row = {"max_time": max_time, "epoch_seconds": epoch, "full": full, "unmeasured": watch.unmeasured}
    row |= {"callback_seconds": watch.seconds if full else looks[-1], "of": seconds if full else epoch}
    row |= {"share": row["callback_seconds"] / row["of"], "drawing": watch.drawing, "looks": looks}
    row |= {"hooks": {name: sum(each) for name, each in watch.hooks.items()}, "measured": sorted(watch.found)}
    row["verdicts"] = {at: _outcomes(result) for at, result in watch.found.items()}
    if watch.result is None:
        return row
    settings = watch.result.settings
    row |= {"units": len(watch.result.units), "thinned": settings["thinned"]}
    return row | {name: settings[name] for name in ("methods", "controls", "samples", "trials_run", "engine")}


def _outcomes(result):
    return {name: each.outcome.value for name, each in result.verdicts.items() if each.gated}


def line(row):
    where = "as it comes" if row["full"] else f"max_time={row['max_time']}"
    what = "all epochs" if row["full"] else "an epoch, by a sample of its steps,"
    goal = f"goal {GOAL if row['full'] else SHARE:.0%}"
    cost = f"{row['callback_seconds']:.1f} s beside {row['of']:.0f} s, {row['share']:.1%} ({goal})"
    if row["unmeasured"]:
        return f"{where}: {what} and the callback take {cost} and has no result: {row['unmeasured']}"
    thinned = f"thinned {row['thinned']}" if row["thinned"] else "nothing thinned"
    followed = len(row["trials_run"]), len(row["methods"]) + len(row["controls"])
    chosen = "{} of {} methods and controls, ".format(*followed)
    trials = "/".join(map(str, sorted(set(row["trials_run"].values()))))
    chosen += f"{row['units']} depths, {trials} trials, {row['samples']} samples; {thinned}"
    hooks = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["hooks"].items() if seconds >= 0.05)
    looks = ", ".join(f"{seconds:.1f}" for seconds in row["looks"])
    drawing = ", ".join(f"{seconds:.1f}" for seconds in row["drawing"])
    verdicts = "; ".join(
        f"{at}: {', '.join(f'{k} {v}' for k, v in each.items())}" for at, each in row["verdicts"].items()
    )
    said = [
        f"{where}: {what} and the callback: {cost}",
        f"validations {looks} s, of it drawing {drawing} s; hooks, s: {hooks}",
        f"last: {chosen}",
        f"verdicts after validation {verdicts}",
    ]
    return "\n    ".join(said)


def main():
    flags = parser(__doc__, repeats=1)
    flags.add_argument("--steps", type=int, default=20, help="training steps that are timed")
    flags.add_argument("--full", action="store_true", help="train whole epochs")
    flags.add_argument("--transfer", action="store_true", help="train the head of a ResNet-50, five batches an epoch")
    flags.add_argument("--size", type=int, default=224, help="of an image's side, with --transfer")
    flags.add_argument("--epochs", type=int, help="how many, with --full (10) and --transfer (3)")
    flags.add_argument("--images", type=int, default=IMAGES)
    given = flags.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if given.equality_only:
        sets, limits = data(2 * BATCH), {"limit_train_batches": 2, "limit_val_batches": 1}
        watch = Watch("gradient", probe=2, trials=1, max_steps=2)
        assert_equal(fitted(sets, **limits)[0], fitted(sets, watch, **limits)[0])
        assert watch.result is not None, watch.unmeasured
        print("the callback leaves the trained weights as they are")
        return
    if given.cpu_time:
        time.perf_counter = time.process_time  # the callback's account goes by what is measured here
        signal.setitimer = lambda *_: (0.0, 0.0)  # alarms know the wall clock alone
    whole, epochs = given.full or given.transfer, given.epochs or (3 if given.transfer else 10)
    sets = large(given.size) if given.transfer else data(given.images)
    limits = {"epochs": epochs} if whole else {"limit_train_batches": given.steps}
    limits |= {"kind": Transfer, "batch": 8} if given.transfer else {}
    without, clock, seconds = fitted(sets, **limits)
    step = statistics.median(clock.steps)
    epoch = seconds / epochs if whole else step * math.ceil(given.images / BATCH) + clock.validation
    rows = []
    # A sample of steps would cut a share of the training time short: there it is given in seconds, at least 1.
    for max_time in ("auto",) if whole else (None, round(max(1.0, SHARE * epoch), 1)):
        watch = Watch(max_time=max_time)
        assert_equal(without, fitted(sets, watch, **limits)[0])
        assert not whole or {1, epochs} <= watch.found.keys(), f"measured at {sorted(watch.found)}"
        rows.append(described(watch, epoch, seconds, max_time, whole))
    publish(given, rows, line)


if __name__ == "__main__":
    main()
