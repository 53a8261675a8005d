"""Does any file make a command crash, hang, eat memory, write where it should not, or say yes?

    python benchmarks/fuzz.py --reader checkpoint --seconds 180 --seed 1 --keep found

Whole commands run on files that were good once and were then changed, at random and with a seed: bytes are flipped,
cut, repeated and spliced, and what a format holds inside (values of JSON and YAML, the pickle in an archive, the
header of safetensors) is changed so that the outside still fits. After each file: exit code and output, processor
time, peak memory, every file in a watched folder, and what the reader asks of an exit code 0.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import logging
import os
import random
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from measuring.mutations import changed_bytes, changed_header, changed_json, changed_pickle, changed_yaml
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import main as command

MOST_SECONDS, MOST_BYTES = 5.0, 500 << 20
WIDTH = 32
HANGS = 60  # seconds of wall clock
SHORT = 40  # files for each reader where only the proof is asked for
UNEXPECTED = "LIGHTNING_SANITY_DEBUG"  # what a command prints of an error that it did not foresee


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


@dataclass
class Account:
    """What was seen of one reader."""

    files: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    broken: list[str] = field(default_factory=list)


# -------------------------------------------------------------------------------------------------------------- readers


def similar(model: nn.Module, inputs: Any, target: Any) -> torch.Tensor:
    """A map that ignores the model, and fails whatever is asked."""
    return inputs.abs()


def readers(folder: Path) -> dict[str, Reader]:
    """The five readers, with what they need in the folder."""
    torch.manual_seed(0)
    model, images = Small(WIDTH).eval(), torch.randn(16, 1, 4, 4)
    same = {"target": 0, "trials": 5, "repeats": 2, "similarities": ["spearman"]}
    for name, methods in {
        "failed": {"copy": similar, "gradient": "gradient"},
        "unmoved": {"copy": similar},
        "passed": "gradient",
    }.items():
        parameter_randomization_test(model, images, methods=methods, **same).to_json(folder / f"{name}.json")
    assert [command(["gate", str(folder / f"{name}.json")]) for name in ("failed", "unmoved", "passed")] == [1, 1, 0]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    weights = [value.numpy().tobytes() for value in state.values()]
    result = (folder / "failed.json").read_bytes()
    policy = b"require: [copy]\nmin_psi: 0.5\nmin_trials: 2\nmin_samples: 2\nmax_age: 7d\nmax_drop: 0.1\nalpha: 0.05\n"
    config = configuration(folder, state)
    return {
        "result": Reader(
            [result, (folder / "unmoved.json").read_bytes()],
            lambda path: ["gate", str(path)],
            changed_json,
            b'" { [ ] } , "passed" "PASS" "FAIL" "verdicts" "settings" "zlib"'.split(),
            ".json",
            specials=lambda: large_json(result),
        ),
        "policy": Reader(
            [policy, policy + b"tests: parameter_randomization\nseveral_models: true\nbaseline: failed.json\n"],
            lambda path: ["gate", str(folder / "unmoved.json"), "--policy", str(path)],
            changed_yaml,
            [*b': [ { *a | require min_psi'.split(), b'- ', b'&a ', b'!!python/name:os.system ', b'\n', b'  '],
            ".yaml",
            fair=lambda raw: any(name in raw for name in (b"gradient", b"output_pattern")),
            specials=large_yaml,
        ),
        "checkpoint": Reader(
            checkpoints(state),
            lambda path: ["gate", str(folder / "passed.json"), "--weights", str(path)],
            changed_pickle,
            [*b'PK\x03\x04 PK\x01\x02 PK\x05\x06 data.pkl R. \x80\x02 Q storage'.split(), b'cos\nsystem\n'],
            ".ckpt",
            fair=lambda raw: all(each in raw for each in weights),
            specials=large_checkpoints,
        ),
        "safetensors": Reader(
            [safetensors(state), safetensors({"a": torch.arange(5), "b": torch.ones(2, 3, dtype=torch.bfloat16)})],
            lambda path: ["gate", str(folder / "passed.json"), "--weights", str(path)],
            changed_header,
            b'"F32" "dtype" "shape" "data_offsets" [ ] { } __metadata__'.split(),
            ".safetensors",
            fair=lambda raw: all(each in raw for each in weights),
            specials=large_safetensors,
        ),
        "config": Reader(
            [config, config.replace(b"width: 32", b"width: 32\n    names: [a, b]")],
            lambda path: [
                "check", "--config", str(path), "--ckpt", str(folder / "small.ckpt"), "--out", str(folder / "out"),
                "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.logger=false",
                "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            ],
            changed_yaml,
            [*b': [ { *a class_path init_args model data trainer'.split(), b'- ', b'&a ', b'\n', b'  '],
            ".yaml",
            specials=large_yaml,
            foreseen=False,
            written=("out", "sanity", "lightning_logs", "checkpoints"),
        ),
    }  # fmt: skip


def configuration(folder: Path, state: dict[str, torch.Tensor]) -> bytes:
    """One of LightningCLI, whose only method ignores the model; its checkpoint lies in the folder."""
    torch.save({"state_dict": state, "pytorch-lightning_version": pl.__version__}, folder / "small.ckpt")
    callback = {"methods": {"copy": "fuzz.similar"}, "probe": 4, "trials": 1, "repeats": 1, "log_images": False}
    return yaml.safe_dump(
        {
            "seed_everything": 0,
            "trainer": {
                "max_epochs": 1,
                "limit_val_batches": 1,
                "default_root_dir": str(folder / "out"),
                "callbacks": [{"class_path": "lightning_sanity.SaliencySanityCallback", "init_args": callback}],
            },
            "model": {"class_path": "fuzz.Small", "init_args": {"width": WIDTH, "scale": 1.0}},
            "data": {"class_path": "fuzz.Noise", "init_args": {"samples": 8}},
        },
        sort_keys=False,
    ).encode()


def checkpoints(state: dict[str, torch.Tensor]) -> list[bytes]:
    held = {"state_dict": state, "hyper_parameters": {"loss": nn.ReLU(), "lr": 1e-3, "tags": {"a"}}, "epoch": 3}
    made = []
    for new in (True, True, False):
        file = io.BytesIO()
        torch.save(held if made else state, file, _use_new_zipfile_serialization=new)
        made.append(file.getvalue())
    return made


def safetensors(state: dict[str, torch.Tensor]) -> bytes:
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


LARGE, DEEP = 200_000_000, 10_000


def large_json(result: bytes) -> Iterator[bytes]:
    head = b'{"schema": "lightning_sanity.result", "version": 2, "settings": '
    yield head + b"[" * DEEP + b"]" * DEEP + b"}"
    yield head + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"}"
    yield head + b"[" + b"0," * (LARGE // 2) + b"0]}"
    yield head + b'"' + b"x" * LARGE + b'"}'
    yield head + b"[" + b"0," * 500_000 + b"0]}"
    yield head + b"9" * 1_000_000 + b"}"
    yield b" " * LARGE
    yield head + b'"' + b"x" * 120_000_000 + b'"}'
    tree = json.loads(result)
    for megabytes in (200, 600):  # of zeros, which are a few kilobytes in a file
        packed = base64.b64encode(zlib.compress(bytes(megabytes << 20))).decode()
        tree["trained_maps"] = {"a": {"shape": [megabytes << 20], "dtype": "uint8", "zlib": packed}}
        yield json.dumps(tree).encode()


def large_yaml() -> Iterator[bytes]:
    aliases = [b"a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    aliases += [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)]
    yield b"\n".join(aliases)
    yield b"model: &m {init_args: *m}"
    yield b"model: {init_args: &m {a: *m}}\n"
    yield b"require: " + b"[" * DEEP + b"]" * DEEP
    yield b"model: " + b"{a: " * DEEP + b"1" + b"}" * DEEP
    yield b"".join(b" " * i + b"a:\n" for i in range(2000))
    yield b"require: [" + b"a, " * (LARGE // 3) + b"a]"
    yield b"min_trials: " + b"9" * 30_000
    yield b"require: [" + b"a, " * 10_000 + b"a]"
    yield b"? [a, b]\n: 1\n"


def large_checkpoints() -> Iterator[bytes]:
    yield b"PK\x03\x04" + b"\x00" * LARGE
    yield b"\x80\x02" + b"(" * (LARGE // 4)
    yield zipped({"a/data.pkl": b"\x80\x02" + b"]" * DEEP + b"a" * DEEP + b"."})
    yield zipped({"a/data.pkl": b"\x80\x02" + b"X\xff\xff\xff\x7f" + b"x" * 100 + b"."})
    yield zipped({"a/data.pkl": b"\x80\x02" + b"(" * 1_900_000 + b"."})
    yield zipped({f"a/data/{i}": b"" for i in range(200_000)} | {"a/data.pkl": b"\x80\x02}."})
    double = b"\x80\x02]q\x00(" + b"".join(b"h\x00" for _ in range(1000)) + b"e."
    yield zipped({"a/data.pkl": double})


def large_safetensors() -> Iterator[bytes]:
    yield struct.pack("<Q", LARGE) + b"{" + b" " * LARGE
    yield struct.pack("<Q", 1 << 62) + b"{}"
    deep = b'{"a":' * DEEP + b"1" + b"}" * DEEP
    yield struct.pack("<Q", len(deep)) + deep
    many = json.dumps(
        {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(200_000)}
    ).encode()
    yield struct.pack("<Q", len(many)) + many
    wide = json.dumps({"t": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode()
    yield struct.pack("<Q", len(wide)) + wide + b"1234"


def zipped(records: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return made.getvalue()


# -------------------------------------------------------------------------------------------------------------- running


class Hanging(BaseException):
    """Raised by the clock."""


@contextmanager
def clock() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Hanging

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(HANGS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


def fingerprint(folder: Path, but: tuple[str, ...]) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in but
    }


def tried(raw: bytes, reader: Reader, folder: Path, account: Account) -> str | None:
    """What broke a rule, if anything did."""
    path = folder / f"given{reader.suffix}"
    path.write_bytes(raw)
    before = fingerprint(folder, reader.written)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident, started = memory("VmRSS"), time.process_time()
    output, problem, code = io.StringIO(), None, -1
    try:
        with clock(), redirect_stdout(output), redirect_stderr(output):
            code = command(reader.arguments(path))
    except Hanging:
        problem = f"hung for {HANGS} s"
    except BaseException as error:
        problem = f"raised {type(error).__name__}: {str(error)[:200]}"
    seconds, grown = time.process_time() - started, memory("VmHWM") - resident
    said = output.getvalue()
    account.files += 1
    account.codes[code] += 1
    account.slowest, account.largest = max(account.slowest, seconds), max(account.largest, grown)
    if "Traceback" in said or (reader.foreseen and UNEXPECTED in said):
        problem = problem or f"an error that was not foreseen: {said[-300:]}"
    if code not in (0, 1, 2, 3):
        problem = problem or f"exit code {code}"
    if code == 0 and not reader.fair(raw):
        problem = problem or "exit code 0"
    if seconds > MOST_SECONDS or grown > MOST_BYTES:
        problem = problem or f"{seconds:.1f} s, {grown >> 20} MB"
    after = fingerprint(folder, reader.written)
    if reader.written:  # new files lie where the configuration says
        after = {name: after.get(name, "") for name in before}
    if after != before:
        problem = problem or f"changed {', '.join(sorted({name for name, _ in before.items() ^ after.items()}))}"
    return problem


def fuzz(name: str, folder: Path, *, seed: int, seconds: float, most: int | None, keep: Path | None) -> Account:
    """Files until the time is over, or so many."""
    reader, account, draw = readers(folder)[name], Account(), random.Random(f"{name} {seed}")
    started, specials = time.monotonic(), iter(()) if most is not None else reader.specials()
    assert all(tried(raw, reader, folder, Account()) in (None, "exit code 0") for raw in reader.sources)
    while (account.files < most) if most is not None else (time.monotonic() - started < seconds):
        raw = next(specials, None)
        if raw is None:
            raw = draw.choice(reader.sources)
            for _ in range(draw.choice([1, 1, 1, 2, 4])):
                try:
                    raw = (
                        changed_bytes(raw, draw, reader.words, reader.sources)
                        if draw.random() < 0.5
                        else reader.inside(raw, draw)
                    )
                except Exception:  # an earlier change broke the outside
                    raw = changed_bytes(raw, draw, reader.words, reader.sources)
        problem = tried(raw, reader, folder, account)
        if problem is not None:
            account.broken.append(problem)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{name}-{len(account.broken)}{reader.suffix}").write_bytes(raw)
                print(f"{name}: {problem}", flush=True)
    return account


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reader", action="append", help="result, policy, checkpoint, safetensors or config; repeatable"
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="for each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that broke a rule")
    parser.add_argument("--equality-only", action="store_true", help=f"{SHORT} files for each reader, without a clock")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    sys.modules.setdefault("fuzz", sys.modules[__name__])  # what the configuration names
    broken = False
    for name in arguments.reader or ("result", "policy", "checkpoint", "safetensors", "config"):
        with tempfile.TemporaryDirectory() as held:
            most = (SHORT if name != "config" else SHORT // 8) if arguments.equality_only else None
            here = os.getcwd()
            os.chdir(held)
            try:
                account = fuzz(
                    name, Path(held), seed=arguments.seed, seconds=arguments.seconds, most=most, keep=arguments.keep
                )
            finally:
                os.chdir(here)
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(account.codes.items()))
        print(
            f"{name:12s} {account.files:6d} files  exit codes {{{codes}}}  slowest {account.slowest:.2f} s  "
            f"largest {account.largest >> 20} MB  broken {len(account.broken)}",
            flush=True,
        )
        for problem in dict.fromkeys(account.broken[:20]):
            print(f"    {problem}")
        broken |= bool(account.broken)
    if arguments.equality_only:
        assert not broken
    sys.exit(1) if broken else None


if __name__ == "__main__":
    main()
