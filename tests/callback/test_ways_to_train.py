"""However somebody trains: with the callback all is as without it, and the gate knows which checkpoint was measured."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from made_hostile import CLASSES, Images, Small, Witness, drawing, loader, observer, others_in, told
from made_hostile import trainer as quiet_trainer
from made_trainings import assert_identical
from torch import nn
from torch.nn import functional as F

from lightning_sanity import SanityCheckFailed
from lightning_sanity.model import checkpoint


class Manual(Small):
    """Steps by hand, twice per batch, with a schedule of its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for half in range(2):
            loss = F.cross_entropy(self(batch[0][half::2]), batch[1][half::2])
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()

    def on_train_epoch_end(self):
        self.lr_schedulers().step()


class Adversarial(Small):
    """A discriminator that also classifies, and a generator; each has an optimizer."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.real = nn.Linear(8, 1)
        self.generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8)))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        for_generator, for_discriminator = self.optimizers()
        self.toggle_optimizer(for_generator)
        fake = self.generator(torch.randn(len(images), 3))
        loss = F.softplus(-self.real(self.body(fake).mean((2, 3)))).mean()
        self.manual_backward(loss)
        for_generator.step()
        for_generator.zero_grad()
        self.untoggle_optimizer(for_generator)
        self.toggle_optimizer(for_discriminator)
        loss = (
            F.cross_entropy(self(images), labels) + F.softplus(self.real(self.body(fake.detach()).mean((2, 3)))).mean()
        )
        self.manual_backward(loss)
        for_discriminator.step()
        for_discriminator.zero_grad()
        self.untoggle_optimizer(for_discriminator)

    def configure_optimizers(self):
        judging = [*self.body.parameters(), *self.head.parameters(), *self.real.parameters()]
        return [torch.optim.Adam(self.generator.parameters(), 0.01), torch.optim.Adam(judging, 0.01)]


class Tunable(Small):
    """With a learning rate and a batch size that tuners set, and loaders of its own."""

    def __init__(self, data=None):
        super().__init__()
        self.lr, self.batch_size, self.data = 0.05, 4, data

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.data[0], self.batch_size, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.data[1], self.batch_size)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


class Several(Small):
    """Takes what several loaders give."""

    def training_step(self, batch, batch_idx):
        batches = batch.values() if isinstance(batch, dict) else [batch]
        return sum(super(Several, self).training_step(each, batch_idx) for each in batches if each is not None)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        for position, each in enumerate(batch if isinstance(batch[0], (list, tuple)) else [batch]):
            if each is not None:
                self.log(f"loss/{position}", F.cross_entropy(self(each[0]), each[1]), on_epoch=True)

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class Data(pl.LightningDataModule):
    """Other training data in each epoch."""

    def __init__(self, training, validation):
        super().__init__()
        self.training, self.validation, self.asked = training, validation, 0

    def train_dataloader(self):
        self.asked += 1
        return loader(torch.utils.data.Subset(self.training, range(self.asked, 48)), shuffle=True)

    def val_dataloader(self):
        self.asked += 1
        return loader(torch.utils.data.Subset(self.validation, range(48 - self.asked)))


# -------------------------------------------------------------------------------- ways: (trainer, training, held out)


def plainly(module=Several, **how):
    def way(make, training, validation):
        trainer, model = make(), module()
        trainer.fit(model, loader(training, shuffle=True), loader(validation), **how)
        return trainer, model

    return way


def with_lists(make, training, validation):
    trainer, model = make(), Several()
    trainer.fit(model, loader(training, shuffle=True), [loader(validation), loader(training)])
    return trainer, model


def combined(mode):
    def way(make, training, validation):
        few = torch.utils.data.Subset(training, range(20))
        pair = {"all": loader(training, shuffle=True), "few": loader(few)}
        held_out = CombinedLoader([loader(validation), loader(few)], "sequential" if mode == "min_size" else mode)
        trainer, model = make(), Several()
        trainer.fit(model, CombinedLoader(pair, mode), held_out)
        return trainer, model

    return way


def resumed(make, training, validation):
    first = make(max_epochs=1)
    first.fit(Several(), loader(training, shuffle=True), loader(validation))
    path = f"{first.default_root_dir}/half.ckpt"
    first.save_checkpoint(path)
    return plainly(ckpt_path=path)(make, training, validation)


def then(*functions):
    def way(make, training, validation):
        trainer, model = plainly()(make, training, validation)
        for function in functions:
            getattr(trainer, function)(model, loader(validation), **({"verbose": False} if function == "test" else {}))
        return trainer, model

    return way


def tuned(tune):
    def way(make, training, validation):
        trainer, model = make(), Tunable((training, validation))
        tune(Tuner(trainer), model)
        trainer.fit(model)
        model.data = None
        return trainer, model

    return way


def finding(make, training, validation):
    trainer, model = make(), Tunable((training, validation))
    trainer.fit(model)
    model.data = None
    return trainer, model


def reloading(make, training, validation):
    trainer, model = make(), Small()
    trainer.fit(model, datamodule=Data(training, validation))
    return trainer, model


def twice(make, training, validation):
    trainer, model = plainly()(make, training, validation)
    trainer.fit_loop.max_epochs += 1
    trainer.fit(model, loader(training, shuffle=True), loader(validation))
    return trainer, model


def at_steps():
    return ModelCheckpoint(filename="{step}", every_n_train_steps=2, save_last=True, save_top_k=-1)


def rate():
    return LearningRateFinder(num_training_steps=20, update_attr=True)


def fitting_batches():
    return BatchSizeFinder(steps_per_trial=1, init_val=4, max_trials=2)


WAYS = {
    "manual optimization": (plainly(Manual), {}, []),
    "two optimizers": (plainly(Adversarial), {}, []),
    "a learning rate finder": (finding, {}, [rate]),
    "a batch size finder": (finding, {}, [fitting_batches]),
    "a tuner's learning rate": (tuned(lambda tuner, model: tuner.lr_find(model, num_training=20)), {}, []),
    "a tuner's batch size": (
        tuned(lambda tuner, model: tuner.scale_batch_size(model, steps_per_trial=1, init_val=4, max_trials=2)),
        {},
        [],
    ),
    "a dry run": (plainly(), {"fast_dev_run": True}, []),
    "a dry run of three batches": (plainly(), {"fast_dev_run": 3}, []),
    "two batches over and over": (plainly(), {"overfit_batches": 2}, []),
    "a share of the batches over and over": (plainly(), {"overfit_batches": 0.5}, []),
    "shares of the batches": (plainly(), {"limit_val_batches": 0.5, "limit_train_batches": 0.7}, []),
    "several validation loaders": (with_lists, {"num_sanity_val_steps": 2}, []),
    "combined loaders, the shortest": (combined("min_size"), {}, []),
    "combined loaders, in cycles": (combined("max_size_cycle"), {}, []),
    "combined loaders, the longest": (combined("max_size"), {}, []),
    "resumed": (resumed, {}, []),
    "tested and predicting": (then("test", "predict", "validate"), {}, []),
    "fitted twice": (twice, {}, []),
    "saved at steps and last": (plainly(), {"val_check_interval": 2}, [at_steps]),
    "no inference mode": (plainly(Manual), {"inference_mode": False, "detect_anomaly": True}, []),
    "loaders that change": (reloading, {"reload_dataloaders_every_n_epochs": 1}, []),
    "validation before training": (plainly(), {"num_sanity_val_steps": -1, "check_val_every_n_epoch": 2}, []),
    "deterministic and clipped": (plainly(), {"deterministic": True, "gradient_clip_val": 0.1}, []),
    "validation by steps alone": (plainly(), {"val_check_interval": 3, "check_val_every_n_epoch": None}, []),
}


QUICK = {
    "manual optimization",
    "two optimizers",
    "a learning rate finder",
    "a tuner's batch size",
    "a dry run of three batches",
    "a share of the batches over and over",
    "several validation loaders",
    "combined loaders, in cycles",
    "resumed",
    "tested and predicting",
    "saved at steps and last",
    "loaders that change",
}


def left_behind(way, folder, measuring):
    train, options, others = WAYS[way]
    pl.seed_everything(0, verbose=False)
    training, validation, witnesses = Images(drawing("numpy")), Images(drawing("torch")), []

    def make(**changes):
        witnesses.append(Witness())
        mine = [observer(report=True, max_time=None), witnesses[-1]] if measuring else []
        saver = (
            [] if any(other is at_steps for other in others) else [ModelCheckpoint(filename="{epoch}", save_top_k=-1)]
        )
        return pl.Trainer(
            default_root_dir=folder,
            callbacks=[*mine, *(other() for other in others), *saver],
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"max_epochs": 2, **options, **changes},
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer, model = train(make, training, validation)
        trainer.save_checkpoint(folder / "end.ckpt")
    left = {
        "checkpoints": {path.name: others_in(path) for path in sorted(folder.rglob("*.ckpt"))},
        "metrics": {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("sanity/")},
        "order": (training.asked, validation.asked),
        "tuned": (getattr(model, "lr", None), getattr(model, "batch_size", None)),
        "streams": torch.get_rng_state(),
    }
    messages = [str(each.message) for each in caught]
    troubles = [words for words in messages if "training goes on" in words or "gave no result" in words]
    return left, [digest for witness in witnesses for digest in witness.digests], troubles


@pytest.mark.parametrize("way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS])
def test_training_is_the_same_and_the_gate_tells_the_truth(tmp_path, way):
    folder = tmp_path / "run"  # paths stand in checkpoints, so that both runs have the same folder
    dry = "fast_dev_run" in WAYS[way][1]  # such a run leaves no files: Lightning's do not either
    with_callback, witnessed, troubles = left_behind(way, folder, True)
    assert troubles == []
    for path in sorted(folder.rglob("*.ckpt")):
        measured = set(witnessed) & set(checkpoint.digests(path))
        assert told(folder, path) == bool(measured and not dry), path.name
    folder.rename(tmp_path / "with")
    without, *_ = left_behind(way, folder, False)
    assert_identical(with_callback, without)


def test_stopping_by_a_verdict_changes_nothing_before_the_stop(tmp_path):
    def weights(*callbacks, **changes):
        pl.seed_everything(0, verbose=False)
        model = Small()
        trainer = quiet_trainer(tmp_path, list(callbacks), **changes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, loader(Images(drawing("numpy")), shuffle=True), loader(Images(drawing("torch"))))
        return model.state_dict(), trainer.current_epoch

    stop = EarlyStopping("sanity/gradient/psi", mode="max", patience=1, min_delta=2.0)  # no PSI grows that much
    stopped, epochs = weights(observer(), stop, max_epochs=9)
    assert epochs == 2
    assert_identical(dict(stopped), dict(weights(max_epochs=2)[0]))


def test_predicting_needs_no_verdict_and_loses_none(tmp_path):
    measured = observer(on_fail="raise")
    trainer, model, validation = quiet_trainer(tmp_path, [measured]), Several(), loader(Images(drawing("torch")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(SanityCheckFailed, match="gradient is INCONCLUSIVE"):
            trainer.validate(model, validation, verbose=False)
    kept = measured.result
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        predicted = trainer.predict(model, validation)
    assert torch.cat(predicted).shape == (48, CLASSES)
    assert measured.result is kept is not None


def test_a_tuner_is_not_taken_for_a_training_without_a_verdict(tmp_path):
    trainer = quiet_trainer(tmp_path, [observer(on_fail="raise")])
    model = Tunable((Images(drawing("numpy")), Images(drawing("torch"))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Tuner(trainer).lr_find(model, num_training=6)
        assert len(found.results["lr"]) == 6
        with pytest.raises(SanityCheckFailed, match="gradient is INCONCLUSIVE"):
            trainer.fit(model)
