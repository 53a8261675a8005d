"""Two processes that hold a model in shards: measured in place, restored, and found what one process finds."""

import json
import os
import random
import signal
import socket
import time
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback, checkpoint, demo, parameter_randomization_test
from lightning_sanity.attribution.method import output_gradient
from lightning_sanity.budget import Interrupted
from lightning_sanity.shadow import weights_digest
from lightning_sanity.weights import drop_gathered, values

WORLD = 2
PATIENCE = 240  # seconds for all processes


class Digits(demo.DigitsClassifier):
    """A CNN with BatchNorm, dropout, uneven shards, a counter and momentum, sharded where there is a mesh."""

    tensor_parallel = False

    def configure_model(self):
        if hasattr(self, "forwards"):
            return
        self.forwards, self.pending = 0, []
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(512, 33), nn.ReLU(), nn.Dropout(0.3), nn.Linear(33, 16), nn.ReLU(), nn.Linear(16, 10)
        )
        if self._device_mesh is None:
            return
        if self.tensor_parallel:
            plan = {"4": ColwiseParallel(), "6": RowwiseParallel()}
            parallelize_module(self.classifier, self.device_mesh["tensor_parallel"], plan)
            return
        for layer in (self.features[0], self.features[3], self.classifier):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def forward(self, images):
        self.forwards += 1
        return super().forward(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)

    def on_validation_end(self):
        drop_gathered(self)
        self.pending.append([None if p.grad is None else p.grad.to_local().clone() for p in self.parameters()])


class Rank1Differs(Digits):
    """Its running statistics are the process's own, and not those that a checkpoint holds."""

    def on_validation_start(self):
        if self.global_rank == 1 and self.trainer.sanity_checking is False:
            self.features[1].running_mean += 0.5


def measuring(methods=("gradient", "gradcam", "guided_backprop"), **changes):
    arguments = {"probe": 8, "trials": 2, "repeats": 1, "max_steps": 2, "log_images": False, "engine": "plain"}
    return SaliencySanityCallback(methods, **{**arguments, **changes})


def trainer(folder, *callbacks, devices=WORLD, strategy=None, **changes):
    if strategy is None and devices > 1:
        strategy = ModelParallelStrategy(data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy or "auto",
        max_epochs=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": any(isinstance(each, ModelCheckpoint) for each in callbacks), **changes},
    )


def loaders():
    training, validation = demo.digits()
    small = TensorDataset(*(tensor[:704] for tensor in training.tensors))
    return DataLoader(small, 16, shuffle=True), DataLoader(validation, 100)


def fitted(folder, *callbacks):
    """A model trained on two processes; validated in the middle of an accumulation of gradients."""
    pl.seed_everything(5, verbose=False)
    model = Digits()
    run = trainer(folder, *callbacks, accumulate_grad_batches=2, val_check_interval=11, num_sanity_val_steps=1)
    run.fit(model, *loaders())
    return model, run


def everything(model, run):
    """All that training leaves on this process."""
    state = run.optimizers[0].state_dict()["state"]
    return {
        **{f"weight {name}": tensor.clone() for name, tensor in values(model).items()},
        **{f"moments {key}": [each[m].to_local().clone() for m in ("exp_avg", "exp_avg_sq")] for key, each in state.items()},
        "gradients": model.pending,
        "asks for gradients": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [(len(m._forward_pre_hooks), len(m._forward_hooks)) for m in model.modules()],
        "streams": (torch.get_rng_state(), np.random.get_state()[1], random.getstate()),
        "counters": (run.global_step, model.forwards),
        "loops": json.dumps(run.fit_loop.state_dict(), default=str),
        "signals": [signal.getsignal(number) is signal.SIG_DFL for number in (signal.SIGTERM, signal.SIGUSR1)],
    }


# ------------------------------------------------------------------------------------------------------ two processes


def launched(work, folder):
    """What ``work(rank, folder)`` returns in each of two processes that were started together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = torch.multiprocessing.start_processes(
            _process, (work, folder, port), nprocs=WORLD, join=False, start_method="fork"
        )
    until = time.monotonic() + PATIENCE
    while not context.join(timeout=max(until - time.monotonic(), 0.1)):
        if time.monotonic() > until:
            for process in context.processes:
                process.kill()
            pytest.fail("the processes wait for one another")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(WORLD)]


def _process(rank, work, folder, port):
    warnings.resetwarnings()
    warnings.simplefilter("ignore")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    torch.save(work(rank, folder), folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def trained(rank, folder):
    """With and without the callback; then tests that break off, on what was trained."""
    clock = time.process_time()
    def lap(what):
        nonlocal clock
        print(rank, what, round(time.process_time() - clock, 2), flush=True); clock = time.process_time()
    measured = measuring()
    saved = ModelCheckpoint(folder, filename="trained", every_n_epochs=1, save_on_train_epoch_end=True)
    model, run = fitted(folder / "with", measured, saved)
    lap("fit with")
    found = {"with": everything(model, run), "result": measured.result.to_records(), "digest": weights_digest(model)}
    found["result digest"] = measured.result.weights_digest
    found["logged"] = {key: float(value) for key, value in run.callback_metrics.items() if "sanity" in key}
    found["without"] = everything(*fitted(folder / "without"))
    lap("without")
    images = demo.digits()[1].tensors[0][:6]
    for broken in (signalled, hanging, failing, failing_on_one):
        before = everything(model, run)
        found[broken.__name__] = broken(rank, model, images)
        lap(broken.__name__)
        found[f"after {broken.__name__}"] = before, everything(model, run)
    return found


SHORT = {"trials": 1, "repeats": 1, "max_steps": 2, "controls": False, "pictures": False, "reinitialize": "normal"}


def error_of(model, images, method, **changes):
    try:
        result = parameter_randomization_test(model, images, methods=method, **{**SHORT, **changes})
    except (Interrupted, RuntimeError) as error:
        return type(error).__name__, str(error)
    return "none", result.verdicts["method"].reason


def signalled(rank, model, images):
    """A signal comes on the first process while the weights are random; what its handler sees there and elsewhere."""
    trained_weights, seen = weights_digest(model), []
    previous = signal.signal(signal.SIGUSR1, lambda *_: seen.append([t.clone() for t in values(model).values()]))
    calls = []

    def method(model, inputs, target):
        calls.append(0)
        if rank == 0 and len(calls) == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return output_gradient(model, inputs, target)

    before = [t.clone() for t in values(model).values()]
    error = error_of(model, images, {"method": method})
    signal.signal(signal.SIGUSR1, previous)
    same = [all(map(torch.equal, before, each)) for each in seen]
    return error, same, len(calls), weights_digest(model) == trained_weights


def hanging(rank, model, images):
    def method(model, inputs, target):
        while True:
            with torch.no_grad():
                model(inputs)

    return error_of(model, images, {"method": method}, max_seconds=0.5)


def failing(rank, model, images):
    """It breaks off in the middle of the forward pass, with the weights gathered."""

    def method(network, inputs, target):
        def stop(module, arguments):
            raise ZeroDivisionError("on purpose")

        handle = model.classifier[4].register_forward_pre_hook(stop)
        try:
            return output_gradient(network, inputs, target)
        finally:
            handle.remove()

    return error_of(model, images, {"method": method, "gradient": output_gradient})


def failing_on_one(rank, model, images):
    def method(network, inputs, target):
        if rank == 1:
            raise OSError("disk full")
        return output_gradient(network, inputs, target)

    return error_of(model, images, {"method": method, "gradient": output_gradient})


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return folder, launched(trained, folder)


def same(one, other):
    """Equal to the last bit, however nested."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --------------------------------------------------------------------------------------------------------------- tests


def test_training_of_a_sharded_model_stays_bit_identical(training):
    for mine in training[1]:
        assert all(gradient is not None for gradient in mine["with"]["gradients"][1])
        for key, value in mine["with"].items():
            assert same(value, mine["without"][key]), key


def test_every_process_has_the_same_result(training):
    first, second = training[1]
    assert repr(first["result"]) == repr(second["result"])  # NaN equals itself here
    assert first["result digest"] == second["result digest"]
    assert first["logged"] == second["logged"]
    assert first["logged"]["sanity/gradient/psi"] > 0.5


@pytest.mark.filterwarnings("ignore:Be aware that when using", "ignore:saliency maps failed")
def test_two_processes_with_shards_find_what_one_finds_in_the_consolidated_checkpoint(training, tmp_path):
    folder, _ = training
    path = folder / "trained.ckpt"
    trainer(tmp_path, measuring(), devices=1).validate(Digits(), loaders()[1], ckpt_path=path, verbose=False)
    found = [json.loads((each / "sanity" / "latest.json").read_text()) for each in (folder / "with", tmp_path)]
    for each in found:
        del each["seconds"], each["created"], each["step"]
    assert found[0] == found[1]


def test_the_consolidated_checkpoint_holds_the_measured_weights(training):
    folder, (first, _) = training
    state = torch.load(folder / "trained.ckpt", weights_only=True)["callbacks"]["SaliencySanityCallback{'name': None}"]
    assert state["matches_measured"] is True
    assert checkpoint.digests(folder / "trained.ckpt")[0] == first["result digest"]


@pytest.mark.parametrize("broken", ["signalled", "hanging", "failing", "failing_on_one"])
def test_a_test_that_breaks_off_leaves_the_shards_as_they_were(training, broken):
    for mine in training[1]:
        before, after = mine[f"after {broken}"]
        for key, value in before.items():
            assert same(value, after[key]), key


def test_a_signal_ends_the_test_everywhere_and_is_handled_once_the_weights_are_back(training):
    (error, seen, calls, restored), (other_error, other_seen, _, other_restored) = [m["signalled"] for m in training[1]]
    assert error == other_error == ("Interrupted", "SIGUSR1 came during the randomization test")
    assert seen == [True]
    assert other_seen == []
    assert calls == 4
    assert restored and other_restored


def test_a_method_that_hangs_is_given_up_by_all_processes_at_once(training):
    first, second = (mine["hanging"] for mine in training[1])
    assert first == second == ("Interrupted", "method 'method' did not return within twice max_time")


def test_a_method_that_breaks_off_with_gathered_weights_is_given_up_and_the_others_go_on(training):
    first, second = (mine["failing"] for mine in training[1])
    assert first == second
    assert first[0] == "none"
    assert "on purpose" in first[1]


def test_a_method_that_fails_on_one_process_ends_the_test_on_all(training):
    for mine in training[1]:
        assert mine["failing_on_one"][0] == "PeerFailed"
        assert "fell out of step" in mine["failing_on_one"][1]
