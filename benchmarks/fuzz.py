"""Does any file make a command crash, hang, eat memory, write where it should not, or say yes?

    python benchmarks/fuzz.py --reader checkpoint --seconds 180 --seed 1 --keep found

Whole commands run on files that were good once and were then changed, at random and with a seed: bytes are flipped,
cut, repeated and spliced, and what a format holds inside (values of JSON and YAML, the pickle in an archive, the
header of safetensors) is changed so that the outside still fits. After each file: exit code and output, processor
time, peak memory, every file in a watched folder, and what the reader asks of an exit code 0.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring.mutations import changed_bytes
from measuring.readers import READERS, Reader, measured

from lightning_sanity.cli import main as command

MOST_SECONDS, MOST_BYTES = 5.0, 500 << 20
HANGS = 60  # seconds of wall clock
SHORT = 40  # files for each reader where only the proof is asked for
UNEXPECTED = "LIGHTNING_SANITY_DEBUG"  # what a command prints of an error that it did not foresee


@dataclass
class Account:
    """What was seen of one reader."""

    files: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    broken: list[str] = field(default_factory=list)


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


def changed(reader: Reader, draw: random.Random) -> bytes:
    """A good file after one to four changes."""
    raw = draw.choice(reader.sources)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        try:
            outside = draw.random() < 0.5
            raw = changed_bytes(raw, draw, reader.words, reader.sources) if outside else reader.inside(raw, draw)
        except Exception:  # an earlier change broke the outside
            raw = changed_bytes(raw, draw, reader.words, reader.sources)
    return raw


def fuzz(name: str, folder: Path, *, seed: int, seconds: float, most: int | None, keep: Path | None) -> Account:
    """Files until the time is over, or so many."""
    reader, account, draw = READERS[name](folder, measured(folder)), Account(), random.Random(f"{name} {seed}")
    started, specials = time.monotonic(), iter(()) if most is not None else reader.specials()
    assert all(tried(raw, reader, folder, Account()) in (None, "exit code 0") for raw in reader.sources)
    while (account.files < most) if most is not None else (time.monotonic() - started < seconds):
        raw = next(specials, None)
        if raw is None:
            raw = changed(reader, draw)
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
        "--reader", action="append", choices=[*READERS], help="repeatable (default: each after the other)"
    )
    parser.add_argument("--seconds", type=float, default=180.0, help="for each reader (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that broke a rule")
    parser.add_argument("--equality-only", action="store_true", help=f"{SHORT} files for each reader, without a clock")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    broken = False
    for name in arguments.reader or READERS:
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
