"""Checkpoints that other tools wrote themselves have the digest of the model that they were made of."""

import argparse
import copy
import dataclasses
import enum
import functools
import pathlib
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric import Fabric
from lightning.pytorch import callbacks
from torch import nn
from torch.optim import swa_utils
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity.model.checkpoint import digests
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.model.digest import state_digest


class Net(pl.LightningModule):
    """Keeps whatever it is given among its hyper-parameters."""

    def __init__(self, given=None, compiled=False):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        if compiled:
            self.net = torch.compile(self.net, backend="eager")

    def training_step(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.5)


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Options:
    width: int = 3
    kind: type = nn.ReLU


def configuration():
    omegaconf = pytest.importorskip("omegaconf")
    return omegaconf.OmegaConf.create({"base": 1, "net": {"_target_": "torch.nn.ReLU", "width": "${base}"}})


HYPER_PARAMETERS = {
    "a module": lambda: nn.Linear(4, 8),
    "a partial": lambda: functools.partial(torch.optim.Adam, lr=1e-3),
    "an enumeration": lambda: Colour.RED,
    "a path": lambda: pathlib.Path("data"),
    "a configuration of omegaconf": configuration,
    "a dataclass": lambda: Options(),
    "a namespace": lambda: argparse.Namespace(lr=0.1, inner=argparse.Namespace(tags={"a"})),
    "a function": lambda: torch.relu,
}


def fitted(module, folder, *others):
    """The module after two steps, and the checkpoint that its Trainer wrote."""
    pl.seed_everything(0, verbose=False)
    images = TensorDataset(torch.randn(16, 4), torch.arange(16) % 2)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=list(others),
        enable_checkpointing=any(isinstance(each, callbacks.ModelCheckpoint) for each in others),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute 'given' is an instance of `nn.Module`")
        warnings.filterwarnings("ignore", "The number of training batches")
        trainer.fit(module, DataLoader(images, 8))
    trainer.save_checkpoint(folder / "best.ckpt")
    return module, folder / "best.ckpt"


def net(given):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attribute 'given' is an instance of `nn.Module`")
        return Net(given)


@pytest.mark.parametrize("kind", HYPER_PARAMETERS)
def test_a_trainers_checkpoint_with_such_hyper_parameters(kind, tmp_path):
    module, path = fitted(net(HYPER_PARAMETERS[kind]()), tmp_path)
    assert weights_digest(module) in digests(path)
    assert weights_digest(module.net) in digests(path)
    assert weights_digest(Net()) not in digests(path)


def test_a_compiled_part(tmp_path):
    module, path = fitted(Net(compiled=True), tmp_path)
    assert weights_digest(module) in digests(path)
    assert weights_digest(module.net._orig_mod) in digests(path)


@pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="this Lightning averages no weights")
def test_the_average_is_what_a_trainer_that_averages_saves(tmp_path):
    saved = callbacks.ModelCheckpoint(tmp_path, filename="during", save_on_train_epoch_end=True)
    module, _ = fitted(Net(), tmp_path, callbacks.EMAWeightAveraging(decay=0.5), saved)  # ends with the average
    path = tmp_path / "during.ckpt"
    held = torch.load(path, weights_only=False)
    assert not torch.equal(held["state_dict"]["net.0.weight"], held["current_model_state"]["net.0.weight"])
    assert weights_digest(module) in digests(path)
    assert state_digest(held["current_model_state"]) not in digests(path)


@pytest.mark.parametrize("permanent", [False, True])
def test_a_pruned_part(permanent, tmp_path):
    pruning = callbacks.ModelPruning("l1_unstructured", amount=0.5, make_pruning_permanent=permanent)
    module, path = fitted(Net(), tmp_path, pruning)
    assert weights_digest(module) in digests(path)


def test_an_average_of_torch(tmp_path):
    module = Net().net
    average = swa_utils.AveragedModel(module)
    average.update_parameters(module)
    torch.save(average.state_dict(), tmp_path / "average.pt")
    assert weights_digest(average) in digests(tmp_path / "average.pt")
    assert weights_digest(average.module) in digests(tmp_path / "average.pt")


def test_fabric(tmp_path):
    module = Net().net
    Fabric(accelerator="cpu", devices=1).save(tmp_path / "f.ckpt", {"model": module, "step": 3, "kind": Colour.RED})
    assert weights_digest(module) in digests(tmp_path / "f.ckpt")


def test_safetensors(tmp_path):
    safe = pytest.importorskip("safetensors.torch")
    module = Net().net.bfloat16()
    safe.save_model(module, tmp_path / "m.safetensors")
    assert weights_digest(module) in digests(tmp_path / "m.safetensors")


def test_a_data_parallel_wrapper(tmp_path):
    module = Net().net
    torch.save({"state_dict": nn.DataParallel(module).state_dict()}, tmp_path / "p.pt")
    assert weights_digest(module) in digests(tmp_path / "p.pt")


def test_a_statically_quantised_model(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ao = torch.ao.quantization
        module = nn.Sequential(ao.QuantStub(), nn.Linear(4, 3), nn.ReLU(), ao.DeQuantStub()).eval()
        module.qconfig = ao.get_default_qconfig()
        prepared = ao.prepare(module)
        prepared(torch.randn(8, 4))
        quantised = ao.convert(copy.deepcopy(prepared))
        torch.save(quantised.state_dict(), tmp_path / "q.pt")
        assert weights_digest(quantised) in digests(tmp_path / "q.pt")


@pytest.mark.parametrize("kind", ["pickled", "scripted", "exported"])
@pytest.mark.filterwarnings("ignore")
def test_a_whole_module_is_refused_with_the_way_out(kind, tmp_path):
    module, path = nn.Linear(4, 2), tmp_path / "m.pt"
    if kind == "pickled":
        torch.save(module, path)
    elif kind == "scripted":
        torch.jit.save(torch.jit.script(module), path)
    else:
        path = tmp_path / "m.pt2"
        torch.export.save(torch.export.export(module, (torch.ones(1, 4),)), path)
    with pytest.raises(ValueError, match="state_dict"):
        digests(path)
