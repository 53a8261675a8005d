"""Fitting, validating and testing with the callback is bit-identical to doing so without it."""

import random
from dataclasses import dataclass
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from made_trainings import Noisy, Regularised, assert_identical
from torch.utils.data import DataLoader

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.cli import demo


@dataclass
class Run:
    """How a trainer is used: fitted, or only validated or tested, with how many loader workers, resumed or not."""

    how: str = "fit"
    workers: int = 0
    resume: bool = False


def state_after(folder, callbacks, run=None, **changes):
    """A whole checkpoint but for the callbacks' own states, and whatever else a run leaves behind."""
    run = run or Run()
    pl.seed_everything(7, verbose=False)
    training, validation = demo.digits()
    model = Regularised()
    given = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    given |= {"enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=callbacks, **{**given, **changes})
    loader = partial(DataLoader, num_workers=run.workers, multiprocessing_context="fork" if run.workers else None)
    held_out = loader(Noisy(validation.tensors), 64)
    path = folder / f"{len(callbacks)}.ckpt"
    if run.how == "fit":
        start = folder / "start.ckpt" if run.resume else None
        trainer.fit(model, loader(Noisy(training.tensors), 16, shuffle=True), held_out, ckpt_path=start)
    else:
        getattr(trainer, run.how)(model, held_out, verbose=False)
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    saved.pop("callbacks", None)
    modes = [(module.training, [p.requires_grad for p in module.parameters()]) for module in model.modules()]
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [hook.calls for hook in model.classifier[0]._forward_hooks.values()]
    others = (model.cached, model.forwards, model.accuracy.tp, hooks, sorted(vars(model)))
    return saved, modes, gradients, others, (torch.get_rng_state(), np.random.get_state()[1], random.getstate())


def observer(**changes):
    given = {"probe": 4, "trials": 1, "repeats": 1, "max_steps": 2, "report": False, "log_images": False}
    return SaliencySanityCallback(["gradient", "smoothgrad", "guided_gradcam"], **{**given, **changes})


quiet = pytest.mark.filterwarnings(
    "ignore:saliency maps failed",
    "ignore:.*fork.*:DeprecationWarning",
    "ignore:.*sync_dist",
    "ignore:.*use_distributed_sampler",
    "ignore:Using `DistributedSampler`",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:.*did not compute .*metric",
    "ignore:.*strategy and fork",
)
CASES = {
    "plain": (Run(), {}),
    "validation in the middle of accumulation": (Run(), {"val_check_interval": 0.25, "accumulate_grad_batches": 4}),
    "clipping": (Run(), {"gradient_clip_val": 0.1, "accumulate_grad_batches": 2}),
    "workers": (Run(workers=2), {"max_epochs": 1}),
    "bf16-mixed": (Run(), {"precision": "bf16-mixed"}),
    "bf16-true": (Run(), {"precision": "bf16-true"}),
    "64-true": (Run(), {"precision": "64-true"}),
    "resumed": (Run(resume=True), {"max_epochs": 2}),
    "validate": (Run("validate"), {}),
    "test": (Run("test"), {}),
}


SLOW = pytest.mark.slow
LONG = {"plain", "clipping", "bf16-mixed", "64-true"}  # beside the others, which find most


@quiet
@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW if case in LONG else ()) for case in CASES])
def test_a_run_is_bit_identical_with_the_callback(tmp_path, case):
    run, changes = CASES[case]
    if run.resume:
        state_after(tmp_path, [], max_epochs=1)
        (tmp_path / "0.ckpt").rename(tmp_path / "start.ckpt")
    with_callback = state_after(tmp_path, [observer()], run, **changes)
    without = state_after(tmp_path, [], run, **changes)
    assert_identical(with_callback, without)


@quiet
@pytest.mark.parametrize(
    "how", [pytest.param("fit", marks=pytest.mark.slow), "validate", pytest.param("test", marks=pytest.mark.slow)]
)
def test_a_run_in_two_processes_is_bit_identical_with_the_callback(tmp_path, how):
    changes = {"devices": 2, "strategy": "ddp_fork", "max_epochs": 1}
    with_callback = state_after(tmp_path, [Witness(), observer()], Run(how), **changes)
    witnessed = torch.load(tmp_path / "streams.pt", weights_only=False)
    without = state_after(tmp_path, [Witness()], Run(how), **changes)
    assert_identical(with_callback[0], without[0])
    assert_identical(witnessed, torch.load(tmp_path / "streams.pt", weights_only=False))


class Witness(pl.Callback):
    """Writes down what both processes have at the end: their own memory does not come back from a fork."""

    def teardown(self, trainer, pl_module, stage):
        mine = {
            "streams": (torch.get_rng_state(), np.random.get_state()[1], random.getstate()),
            "modes": [module.training for module in pl_module.modules()],
            "weights": {key: value.clone() for key, value in pl_module.state_dict().items()},
            "others": (pl_module.forwards, pl_module.cached),
        }
        everyone = [None, None]
        torch.distributed.all_gather_object(everyone, mine)
        if trainer.is_global_zero:
            torch.save(everyone, f"{trainer.default_root_dir}/streams.pt")


def test_training_is_bit_identical_when_the_test_breaks(tmp_path):
    def broken(model, inputs, target):
        torch.rand(5), np.random.rand(5), random.random()
        raise RuntimeError("broken on purpose")

    with_callback = state_after(tmp_path, [SaliencySanityCallback(broken, probe=4, trials=1, report=False)])
    assert_identical(with_callback, state_after(tmp_path, []))
