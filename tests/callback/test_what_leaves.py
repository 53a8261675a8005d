"""What of the data leaves the machine, by logger: decoded from the files that would be sent, with pictures and without.

With ``log_images=False`` nothing from which an input can be seen: no picture, no copy, no map. The model is linear and
the method input times gradient, so that any map of it, and any map of a control, shows the input.
"""

import json
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from made_trainings import trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.result.file import Decoder

SIDE, SAMPLES = 16, 8
PLAIN = {"curves", "grounds", "output_change", "reproducibility"}  # numbers per trial, depth and sample
KINDS = ("CSV", "TensorBoard", "W&B", "MLflow")


def secret():
    """Eight pictures of two classes, each with a patch that nothing else resembles."""
    torch.manual_seed(3)
    coarse = torch.randn(SAMPLES, 1, 4, 4)
    images = F.interpolate(coarse, (SIDE, SIDE), mode="bilinear") + 0.3 * torch.randn(SAMPLES, 1, SIDE, SIDE)
    return images, torch.arange(SAMPLES) % 2


class Linear(pl.LightningModule):
    """From which input times gradient is the input, weighted."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2))

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, _):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def logger(kind, folder):
    if kind == "CSV":
        return CSVLogger(folder)
    if kind == "TensorBoard":
        return TensorBoardLogger(folder)
    if kind == "MLflow":
        from lightning.pytorch.loggers import MLFlowLogger

        return MLFlowLogger(tracking_uri=f"file:{folder}")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(project="test", save_dir=folder, offline=True)


@pytest.fixture(scope="module")
def leaving(tmp_path_factory):
    """What a run left in the folder of a logger: made when first asked for."""
    made = {}
    images, labels = secret()

    def run(kind, pictures):
        if (kind, pictures) in made:
            return made[kind, pictures]
        pytest.importorskip({"TensorBoard": "tensorboard", "W&B": "wandb", "MLflow": "mlflow"}.get(kind, "torch"))
        folder = tmp_path_factory.mktemp("run")
        measured = SaliencySanityCallback(
            ["input_x_gradient", "gradient"],
            probe=(images, labels),
            trials=2,
            repeats=1,
            log_images=pictures,
            verbose=False,
        )
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, value in {"MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true", "WANDB_MODE": "offline",
                                "WANDB_DATA_DIR": str(folder), "WANDB_CACHE_DIR": str(folder)}.items():  # fmt: skip
                patch.setenv(name, value)
            if kind == "W&B":
                import wandb

                wandb.teardown()
            data = DataLoader(TensorDataset(images, labels), SAMPLES)
            run_ = trainer(folder, measured, logger=logger(kind, folder), log_every_n_steps=1)
            run_.fit(Linear(), data, data)
            if kind == "W&B":
                wandb.finish()
                wandb.teardown()
        made[kind, pictures] = folder
        return folder

    return run


def tensors(value, path=()):
    """Every tensor in a result, with its place."""
    if isinstance(value, dict) and "zlib" in value:
        yield path, Decoder().decode(torch.Tensor, value, "tensor")
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, (*path, str(key)))


def held(folder):
    """Pictures (in files and event files), and tensors in results, of a folder."""
    pictures, found = [], []
    for path in folder.rglob("*"):
        if not path.is_file() or path.is_symlink():
            continue
        if path.suffix == ".png":
            pictures.append(path.name)
        elif path.suffix == ".html":
            pictures += ["page"] * path.read_text().count("data:image/")
        elif "tfevents" in path.name:
            from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

            pictures += EventAccumulator(str(path), {"images": 0}).Reload().Tags()["images"]
        elif path.suffix == ".json":
            data = json.loads(path.read_text() or "null")
            found += list(tensors(data))
    return pictures, found


def likeness(tensor):
    """The largest correlation, up to sign, of a map or picture in a tensor with an input of the probe."""
    if tensor.ndim < 3 or min(tensor.shape[-2:]) < 4:
        return 0.0
    maps = tensor[..., 0][:, None] if tensor.shape[-1] == 3 else tensor
    height, width = maps.shape[-2:]
    flat = maps.float().reshape(-1, height * width)
    inputs = F.interpolate(secret()[0], (height, width), mode="area").flatten(1)

    def standard(rows):
        rows = rows - rows.mean(1, keepdim=True)
        return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-9)

    return max(float((standard(flat) @ standard(other).T).abs().max()) for other in (inputs, inputs.abs()))


@pytest.mark.parametrize("kind", KINDS)
def test_without_pictures_nothing_shows_an_input(leaving, kind):
    pictures, found = held(leaving(kind, False))
    assert pictures == []
    assert {path[0] for path, _ in found} <= PLAIN
    assert found
    assert max(likeness(tensor) for _, tensor in found) == 0


@pytest.mark.parametrize(
    "kind", ["CSV", "TensorBoard", *(pytest.param(k, marks=pytest.mark.slow) for k in ("W&B", "MLflow"))]
)
def test_with_pictures_the_probe_is_shown_and_the_test_sees_it(leaving, kind):
    pictures, found = held(leaving(kind, True))
    assert len(pictures) > 4
    assert any("maps" in Path(name).name for name in pictures)
    assert max(likeness(tensor) for path, tensor in found) > 0.9
