"""What monitors a key of the callback gets a fresh value, or is refused with the way out."""

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from made_hostile import Images, Small, drawing, loader, observer, quiet, trainer

PSI = "sanity/gradient/psi"


class Plateau(Small):
    """Scheduled by a key; notes what the scheduler is given, and what was measured last."""

    def __init__(self, monitor=PSI, plateau=True, **options):
        super().__init__()
        self.monitor, self.plateau, self.options, self.given = monitor, plateau, options, []

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.05)
        schedulers = torch.optim.lr_scheduler
        made = (
            schedulers.ReduceLROnPlateau(optimizer, "max", patience=0)
            if self.plateau
            else schedulers.StepLR(optimizer, 1)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made, "monitor": self.monitor, **self.options}}

    def lr_scheduler_step(self, scheduler, metric):
        self.given.append(metric)
        super().lr_scheduler_step(scheduler, metric)


def fit(folder, model, *callbacks, epochs=3, **changes):
    images = loader(Images(drawing("none")))
    run = trainer(folder, list(callbacks), max_epochs=epochs, **changes)
    with quiet():
        run.fit(model, images, images)
    return run


def test_a_scheduler_of_stale_values_is_refused_before_training(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"ReduceLROnPlateau monitors .* every 2-th validation"):
        fit(tmp_path, Plateau(), observer(every_n_validations=2))


def test_a_scheduler_that_acts_between_validations_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r'acts after training steps.*"interval": "epoch"'):
        fit(tmp_path, Plateau(interval="step", strict=False), observer())


@pytest.mark.parametrize("when", [{"every_n_train_steps": 2}, {"train_time_interval": timedelta(seconds=9)}])
def test_a_checkpoint_between_validations_by_a_score_is_refused(tmp_path, when):
    saving = ModelCheckpoint(tmp_path, monitor=PSI, **when)
    with pytest.raises(MisconfigurationException, match=r"ModelCheckpoint monitors .* acts between validations"):
        fit(tmp_path, Small(), saving, observer(), enable_checkpointing=True)


@pytest.mark.parametrize("max_time", [None, 1e-9])
def test_a_scheduler_gets_the_value_of_the_same_validation(tmp_path, max_time):
    model, measured = Plateau(), observer(max_time=max_time)
    ages = []
    inner = measured.on_validation_epoch_end

    def watched(trainer, module):
        inner(trainer, module)
        ages.append(trainer.global_step - measured.result.step)

    measured.on_validation_epoch_end = watched
    fit(tmp_path, model, measured)
    assert ages == [0, 0, 0]
    assert len(model.given) == 3


@pytest.mark.parametrize(
    "model",
    [Plateau(monitor="loss"), Plateau(plateau=False)],
    ids=["another key", "a schedule that reads nothing"],
)
def test_what_does_not_read_a_key_is_left_alone(tmp_path, model):
    assert fit(tmp_path, model, observer(every_n_validations=2)).current_epoch == 3


@pytest.mark.parametrize(
    ("watched", "refused"), [(PSI, False), ("sanity/rare/gradient/psi", True), ("sanity/rare/passed", True)]
)
def test_another_instances_keys_are_its_own(tmp_path, watched, refused):
    watch = EarlyStopping(watched, mode="max", patience=9)
    pair = observer(), observer(name="rare", every_n_validations=2)
    if refused:
        with pytest.raises(MisconfigurationException, match=f"EarlyStopping monitors '{watched}'"):
            fit(tmp_path, Small(), *pair, watch)
    else:
        assert fit(tmp_path, Small(), *pair, watch).current_epoch == 3
