"""The five readers of foreign files: a command for each, good files, and what would make its exit code 0 right."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import main as command
from measuring.hostile import large_checkpoints, large_json, large_safetensors, large_yaml
from measuring.mutations import changed_header, changed_json, changed_pickle, changed_yaml

WIDTH = 32

State = dict[str, torch.Tensor]


class Small(pl.LightningModule):
    """What the configuration names."""

    def __init__(self, width: int = WIDTH, scale: float = 1.0, names: list[str] | None = None) -> None:
        super().__init__()
        if not 0 < width < 64:
            raise ValueError(f"width must be between 1 and 63, not {width}")
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 2))
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of two classes."""
        return self.net(images) * self.scale

    def validation_step(self, batch: Any) -> None:
        """Logs a loss."""
        self.log("loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class Noise(pl.LightningDataModule):
    """Whose samples it takes."""

    def __init__(self, samples: int = 8) -> None:
        super().__init__()
        if not 0 < samples < 64:
            raise ValueError(f"samples must be between 1 and 63, not {samples}")
        self.samples = samples

    def val_dataloader(self) -> DataLoader[Any]:
        """The same noise each time."""
        images = torch.randn(self.samples, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(self.samples) % 2), 4)


@dataclass(frozen=True)
class Reader:
    """A command that reads one kind of file.

    Attributes:
        sources: Files as they should be.
        arguments: Of the command, given the path of the file.
        inside: Changes what a format holds inside.
        words: That mean something in such files.
        suffix: Of its name.
        fair: Whether exit code 0 is right for these bytes.
        specials: Files made to hurt.
        foreseen: Whether errors of others' code are none of ours.
        written: Folders in which the command may write.
    """

    sources: list[bytes]
    arguments: Callable[[Path], list[str]]
    inside: Callable[[bytes, random.Random], bytes]
    words: list[bytes]
    suffix: str
    fair: Callable[[bytes], bool] = lambda raw: False
    specials: Callable[[], Iterator[bytes]] = lambda: iter(())
    foreseen: bool = True
    written: tuple[str, ...] = ()


def similar(model: nn.Module, inputs: Any, target: Any) -> torch.Tensor:
    """A map that ignores the model, and fails whatever is asked."""
    return inputs.abs()


def measured(folder: Path) -> State:
    """The weights of a model, about which three results lie in the folder: failed, unmoved and passed."""
    torch.manual_seed(0)
    model, images = Small(WIDTH).eval(), torch.randn(16, 1, 4, 4)
    same = {"target": 0, "trials": 5, "repeats": 2, "similarities": ["spearman"]}
    for name, methods in {
        "failed": {"copy": similar, "gradient": "gradient"},
        "unmoved": {"copy": similar},
        "passed": "gradient",
    }.items():
        parameter_randomization_test(model, images, methods=methods, **same).to_json(folder / f"{name}.json")
    with redirect_stdout(io.StringIO()):
        codes = [command(["gate", str(folder / f"{name}.json")]) for name in ("failed", "unmoved", "passed")]
    assert codes == [1, 1, 0]
    return {name: value.clone() for name, value in model.state_dict().items()}


def of_results(folder: Path, state: State) -> Reader:
    failed = (folder / "failed.json").read_bytes()
    return Reader(
        [failed, (folder / "unmoved.json").read_bytes()],
        lambda path: ["gate", str(path)],
        changed_json,
        b'" { [ ] } , "passed" "PASS" "FAIL" "verdicts" "settings" "zlib"'.split(),
        ".json",
        specials=lambda: large_json(failed),
    )


def of_policies(folder: Path, state: State) -> Reader:
    policy = b"require: [copy]\nmin_psi: 0.5\nmin_trials: 2\nmin_samples: 2\nmax_age: 7d\nmax_drop: 0.1\nalpha: 0.05\n"
    return Reader(
        [policy, policy + b"tests: parameter_randomization\nseveral_models: true\nbaseline: failed.json\n"],
        lambda path: ["gate", str(folder / "unmoved.json"), "--policy", str(path)],
        changed_yaml,
        [*b": [ { *a | require min_psi".split(), b"- ", b"&a ", b"!!python/name:os.system ", b"\n", b"  "],
        ".yaml",
        fair=lambda raw: any(name in raw for name in (b"gradient", b"output_pattern")),
        specials=large_yaml,
    )


def of_checkpoints(folder: Path, state: State) -> Reader:
    return Reader(
        checkpoints(state),
        lambda path: ["gate", str(folder / "passed.json"), "--weights", str(path)],
        changed_pickle,
        [*b"PK\x03\x04 PK\x01\x02 PK\x05\x06 data.pkl R. \x80\x02 Q storage".split(), b"cos\nsystem\n"],
        ".ckpt",
        fair=lambda raw: holds(raw, state),
        specials=large_checkpoints,
    )


def of_safetensors(folder: Path, state: State) -> Reader:
    return Reader(
        [safetensors(state), safetensors({"a": torch.arange(5), "b": torch.ones(2, 3, dtype=torch.bfloat16)})],
        lambda path: ["gate", str(folder / "passed.json"), "--weights", str(path)],
        changed_header,
        b'"F32" "dtype" "shape" "data_offsets" [ ] { } __metadata__'.split(),
        ".safetensors",
        fair=lambda raw: holds(raw, state),
        specials=large_safetensors,
    )


def of_configurations(folder: Path, state: State) -> Reader:
    config = configuration(folder, state)
    given = ["--ckpt", str(folder / "small.ckpt"), "--out", str(folder / "out"), "--trainer.accelerator=cpu"]
    given += ["--trainer.devices=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    given += ["--trainer.enable_model_summary=false"]
    return Reader(
        [config, config.replace(b"width: 32", b"width: 32\n    names: [a, b]")],
        lambda path: ["check", "--config", str(path), *given],
        changed_yaml,
        [*b": [ { *a class_path init_args model data trainer".split(), b"- ", b"&a ", b"\n", b"  "],
        ".yaml",
        specials=large_yaml,
        foreseen=False,
        written=("out", "sanity", "lightning_logs", "checkpoints"),
    )


READERS: dict[str, Callable[[Path, State], Reader]] = {
    "result": of_results,
    "policy": of_policies,
    "checkpoint": of_checkpoints,
    "safetensors": of_safetensors,
    "config": of_configurations,
}


def holds(raw: bytes, state: State) -> bool:
    """Whether every tensor lies in the bytes, somewhere."""
    return all(value.numpy().tobytes() in raw for value in state.values())


def configuration(folder: Path, state: State) -> bytes:
    """One of LightningCLI, whose only method ignores the model; its checkpoint lies in the folder."""
    torch.save({"state_dict": state, "pytorch-lightning_version": pl.__version__}, folder / "small.ckpt")
    callback = {
        "methods": {"copy": "measuring.readers.similar"},
        "probe": 4,
        "trials": 1,
        "repeats": 1,
        "log_images": False,
    }
    return yaml.safe_dump(
        {
            "seed_everything": 0,
            "trainer": {
                "max_epochs": 1,
                "limit_val_batches": 1,
                "default_root_dir": str(folder / "out"),
                "callbacks": [{"class_path": "lightning_sanity.SaliencySanityCallback", "init_args": callback}],
            },
            "model": {"class_path": "measuring.readers.Small", "init_args": {"width": WIDTH, "scale": 1.0}},
            "data": {"class_path": "measuring.readers.Noise", "init_args": {"samples": 8}},
        },
        sort_keys=False,
    ).encode()


def checkpoints(state: State) -> list[bytes]:
    held = {"state_dict": state, "hyper_parameters": {"loss": nn.ReLU(), "lr": 1e-3, "tags": {"a"}}, "epoch": 3}
    made = []
    for new in (True, True, False):
        file = io.BytesIO()
        torch.save(held if made else state, file, _use_new_zipfile_serialization=new)
        made.append(file.getvalue())
    return made


def safetensors(state: State) -> bytes:
    names = {torch.float32: "F32", torch.int64: "I64", torch.bfloat16: "BF16"}
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    raw = b""
    for name, value in state.items():
        data = value.contiguous().view(torch.uint8).numpy().tobytes()
        offsets = [len(raw), len(raw) + len(data)]
        head[name] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        raw += data
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + raw
