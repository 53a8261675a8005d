"""Two processes that hold a model in shards: measured in place, restored, and found what one process finds."""

import json
import os
import random
import signal
import socket
import time
import warnings
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback, parameter_randomization_test
from lightning_sanity.attribution.method import output_gradient
from lightning_sanity.callback.released_weights import obstacle
from lightning_sanity.cli import demo
from lightning_sanity.model import checkpoint
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.model.digest import state_digest
from lightning_sanity.model.weights import drop_gathered, values
from lightning_sanity.resources.budget import Interrupted

WORLD = 2
PATIENCE = 240  # seconds for all processes


class Digits(demo.DigitsClassifier):
    """A CNN with BatchNorm, dropout, uneven shards, a counter and momentum, sharded where there is a mesh."""

    def __init__(self, hidden=33, tensor_parallel=False):
        super().__init__()
        self.hidden, self.tensor_parallel = hidden, tensor_parallel
        self.forwards, self.pending = 0, []

    def configure_model(self):
        if len(self.classifier) == 5:
            return
        layers = nn.Linear(512, self.hidden), nn.ReLU(), nn.Dropout(0.1), nn.Linear(self.hidden, 10)
        self.classifier = nn.Sequential(nn.Flatten(), *layers)
        if self._device_mesh is not None:
            self.shard()

    def shard(self):
        if self.tensor_parallel:
            plan = {"1": ColwiseParallel(), "4": RowwiseParallel()}
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


def measuring(methods=("gradient", "gradcam", "guided_backprop"), **changes):
    arguments = {"probe": 8, "trials": 2, "repeats": 1, "max_steps": 2, "reinitialize": "reset"}
    return SaliencySanityCallback(methods, log_images=False, engine="plain", **{**arguments, **changes})


def trainer(folder, *callbacks, devices=WORLD, save_distributed_checkpoint=False, **changes):
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=ModelParallelStrategy(devices, 1, save_distributed_checkpoint) if devices > 1 else "auto",
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
        "moments": [each[m].to_local().clone() for each in state.values() for m in ("exp_avg", "exp_avg_sq")],
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
    if not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip(f"FSDP2 of torch {torch.__version__} gathers nothing on a CPU")
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
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.save(work(rank, folder), folder / f"rank{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def trained(rank, folder):
    """With and without the callback; then tests that break off, on what was trained."""
    measured = measuring()
    saved = ModelCheckpoint(folder, filename="trained", every_n_epochs=1, save_on_train_epoch_end=True)
    model, run = fitted(folder / "with", measured, saved)
    found = {"with": everything(model, run), "result": measured.result.to_records(), "digest": weights_digest(model)}
    found["result digest"] = measured.result.weights_digest
    found["logged"] = {key: float(value) for key, value in run.callback_metrics.items() if "sanity" in key}
    found["without"] = everything(*fitted(folder / "without"))
    images = demo.digits()[1].tensors[0][:6]
    for broken in (signalled, hanging, failing, failing_on_one):
        before = everything(model, run)
        found[broken.__name__] = broken(rank, model, images)
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


def explored(rank, folder):
    """Other ways to re-initialise, to shard and to save; ``whole`` runs on the first process alone."""
    demonstration, _ = demo.digits()
    images = demonstration.tensors[0][:8]
    mesh = init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    found = {}
    for name, how in {"normal": "normal", "shuffle": "shuffle", "twin": made}.items():
        found[name] = compared(rank, mesh, images, reinitialize=how)
    found["last"] = compared(rank, mesh, images, order="bottom_up", norm_stats="recalibrate", granularity="block")
    columns = init_device_mesh("cpu", (1, WORLD), mesh_dim_names=("data_parallel", "tensor_parallel"))
    found["tensor parallel"] = compared(rank, columns, images, {"hidden": 32, "tensor_parallel": True})
    found["inference"] = after_inference(mesh, images)
    result = parameter_randomization_test(sharded(mesh), images, 0, methods=["lrp_epsilon", "cam"], **SHORT)
    found["reasons"] = {name: verdict.reason for name, verdict in result.verdicts.items()}
    for name, others in {"apart": [], "shared": [OneStatistic()]}.items():
        measured, saved = measuring("gradient", trials=1), ModelCheckpoint(folder, filename=name, every_n_epochs=1)
        run = trainer(folder, *others, measured, saved, save_distributed_checkpoint=True, limit_train_batches=2)
        run.fit(Digits(), *loaders())
        found[f"{name} digest"] = measured.result.weights_digest
    return found


class OneStatistic(pl.Callback):
    """Gives every process the running statistics of the first."""

    def on_validation_start(self, trainer, pl_module):
        for buffer in pl_module.buffers():
            torch.distributed.broadcast(buffer, 0)


def made(**changes):
    model = Digits(**changes)
    model.configure_model()
    return model


def sharded(mesh, **changes):
    torch.manual_seed(7)
    model = made(**changes)
    model._device_mesh = mesh
    model.shard()
    return model


def compared(rank, mesh, images, kind=None, **changes):
    """Largest differences of curves, units and coverage to those of the whole model; None on the other process."""
    arguments = {"methods": "gradient", "target": 0, **SHORT, **changes, "engine": "plain"}
    two = parameter_randomization_test(sharded(mesh, **(kind or {})), images, **arguments)
    if rank > 0:
        return None
    torch.manual_seed(7)
    one = parameter_randomization_test(made(**(kind or {})), images, **arguments)
    assert two.units == one.units
    # What is read beside the parameters is looked for in whole models only; a note says so.
    assert replace(two.coverage, notes=()) == replace(one.coverage, notes=())
    assert two.weights_digest == one.weights_digest
    assert one.coverage.share == 1.0
    return max(float((two.curves[key].values - one.curves[key].values).abs().max()) for key in one.curves)


def after_inference(mesh, images):
    model = sharded(mesh).eval()
    with torch.inference_mode():
        model(images)
    try:
        parameter_randomization_test(model, images, methods="gradient", **SHORT)
    except ValueError as error:
        return str(error)


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return folder, launched(trained, folder)


@pytest.fixture(scope="module")
def exploration(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exploration")
    return folder, launched(explored, folder)


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
        for occasion in ("stage", "epoch", "batch"):
            each["settings"].pop(occasion, None)
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
    assert restored
    assert other_restored


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
        assert "no longer agree on what comes next" in mine["failing_on_one"][1]


@pytest.mark.slow
def test_every_way_to_reinitialise_draws_for_shards_what_it_draws_for_the_whole(exploration):
    first = exploration[1][0]
    assert {name: first[name] for name in ("normal", "shuffle", "twin", "last")} == dict.fromkeys(
        ("normal", "shuffle", "twin", "last"), 0.0
    )


@pytest.mark.slow
def test_tensor_parallel_layers_are_measured_too_up_to_rounding(exploration):
    assert exploration[1][0]["tensor parallel"] < 1e-5


@pytest.mark.slow
def test_a_model_that_was_first_run_in_inference_mode_is_refused_with_the_way_out(exploration):
    assert "Trainer(inference_mode=False)" in exploration[1][0]["inference"]


@pytest.mark.slow
def test_methods_that_replace_weights_do_not_apply_to_shards(exploration):
    assert "sharded weights" in exploration[1][0]["reasons"]["lrp_epsilon"]


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["apart", "shared"])
def test_a_checkpoint_of_shards_knows_whether_it_holds_the_measured_weights(exploration, statistics):
    folder, (first, second) = exploration
    assert first[f"{statistics} digest"] == second[f"{statistics} digest"]
    written = _load_distributed_checkpoint(folder / f"{statistics}.ckpt")
    same = state_digest(written["state_dict"]) == first[f"{statistics} digest"]
    assert (checkpoint.digests(folder / f"{statistics}.ckpt")[0] == first[f"{statistics} digest"]) is same
    assert same is (statistics == "shared")  # each running statistic is written by some process: not the measured one
    assert written["callbacks"][measuring().state_key]["matches_measured"] is same


def test_a_folder_of_shards_is_refused_with_what_makes_one_file_of_it(tmp_path):
    with pytest.raises(ValueError, match="consolidate_checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("wanted", [{"precision": "32"}, {"reference_checkpoint": "other.ckpt"}, {"max_memory": 10**9}])
def test_what_shards_do_not_stand_is_refused_with_the_way_out(wanted):
    measured = measuring(**wanted)
    problem = obstacle([measured], ModelParallelStrategy(), measured)
    assert next(iter(wanted)) in problem
    assert "consolidated checkpoint" in problem


def test_nothing_else_of_a_model_parallel_trainer_is_refused():
    measured = measuring()
    assert obstacle([measured], ModelParallelStrategy(), measured) is None
