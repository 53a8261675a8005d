"""Weight averaging beside the callback: what is measured, what a checkpoint holds, whether that was ever trained."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import Outcome, SaliencySanityCallback
from lightning_sanity.cli import demo
from lightning_sanity.model.digest import state_digest

pytestmark = [
    pytest.mark.filterwarnings("ignore:saliency maps failed the randomization test"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]


@pytest.fixture(scope="module")
def loaders():
    training, validation = demo.digits()
    small = TensorDataset(*(tensor[:128] for tensor in training.tensors))
    return DataLoader(small, 64, shuffle=True), DataLoader(validation, 256)


class Recording(SaliencySanityCallback):
    """Measures every validation and keeps every result."""

    def __init__(self, **changes):
        given = {"probe": 8, "trials": 1, "repeats": 1, "max_steps": 1, "log_images": False, "report": False}
        given |= {"max_time": None}
        super().__init__("gradient", **{**given, **changes})
        self.results = []

    def _publish(self, trainer, result):
        self.results.append(result)


def fit(folder, loaders, *callbacks, **changes):
    checkpoint = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        callbacks=[*callbacks, checkpoint], default_root_dir=folder, **{"max_epochs": 2, **quiet, **changes}
    )
    trainer.fit(demo.DigitsClassifier(), *loaders)


def saved(path):
    checkpoint = torch.load(path, weights_only=False)  # Lightning 2.5 stores a scheduler of SWA as an object
    state = next(state for key, state in checkpoint["callbacks"].items() if key.startswith("Recording"))
    return state_digest(checkpoint["state_dict"]), state["matches_measured"]


@pytest.mark.parametrize("swaps_at_once", [True, False])
def test_no_verdict_stands_before_weights_were_averaged_for_the_first_time(tmp_path, loaders, swaps_at_once):
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging", reason="came with Lightning 2.6")

    class EMA(averaging.EMAWeightAveraging):
        def _swap_models(self, pl_module):
            if swaps_at_once or self._average_model.n_averaged > 0:
                super()._swap_models(pl_module)

    measured = Recording()
    with pytest.warns(
        UserWarning, match="no verdict .* stands at step 2: EMA has not updated its average yet"
    ) as caught:
        fit(tmp_path, loaders, measured, EMA(decay=0.5, update_starting_at_step=4), max_epochs=3)  # of 2 steps each
    assert sum("has not updated" in str(warning.message) for warning in caught) == 1
    *early, late = measured.results
    for epoch, result in enumerate(early):
        assert not result.valid
        assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
        assert "let it start before the first validation" in result.verdicts["gradient"].reason
        held, matches = saved(tmp_path / f"epoch={epoch}.ckpt")
        assert matches is swaps_at_once  # and says so where the trained weights were measured, but not saved
        assert (held == result.weights_digest) is swaps_at_once
    assert late.valid
    assert saved(tmp_path / "epoch=2.ckpt") == (late.weights_digest, True)


@pytest.mark.parametrize("first", [True, False])
def test_stochastic_weight_averaging_leaves_the_measured_weights_in_checkpoints(tmp_path, loaders, first):
    measured, averaging = Recording(), StochasticWeightAveraging(1e-3, swa_epoch_start=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Swapping scheduler")
        fit(tmp_path, loaders, *((averaging, measured) if first else (measured, averaging)), max_epochs=3)
    for epoch, result in enumerate(measured.results):
        assert saved(tmp_path / f"epoch={epoch}.ckpt") == (result.weights_digest, True)


def put_in(checkpoint):
    checkpoint["state_dict"] = {key: value + 1 for key, value in checkpoint["state_dict"].items()}


class Changing(pl.Callback):
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        put_in(checkpoint)


class ChangingModel(demo.DigitsClassifier):
    def on_save_checkpoint(self, checkpoint):
        put_in(checkpoint)


class Noting(pl.Callback):
    def on_train_start(self, trainer, pl_module):
        self.noted = True


@pytest.mark.parametrize(
    ("model", "callbacks", "answer"),
    [
        (demo.DigitsClassifier, lambda me: [me, Changing()], "unknown"),
        (demo.DigitsClassifier, lambda me: [Changing(), me], False),
        (ChangingModel, lambda me: [me], "unknown"),
        (demo.DigitsClassifier, lambda me: [me, Noting()], True),
    ],
    ids=["a later callback", "an earlier callback", "the model itself", "nobody"],
)
def test_what_a_checkpoint_says_is_true_or_unknown(tmp_path, loaders, model, callbacks, answer):
    measured = Recording()
    saving = ModelCheckpoint(tmp_path, filename="last")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    run = pl.Trainer(callbacks=[*callbacks(measured), saving], default_root_dir=tmp_path, max_epochs=1, **quiet)
    run.fit(model(), *loaders)
    digest, said = saved(tmp_path / "last.ckpt")
    assert said == answer
    assert (digest == measured.results[0].weights_digest) == (said is True)
