"""A whole command on one file: its exit code and words, its time and memory, and every file beside it."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_sanity.cli import main as command
from measuring.readers import Reader

MOST_SECONDS, MOST_BYTES = 5.0, 500 << 20
HANGS = 60  # seconds of wall clock
UNEXPECTED = "LIGHTNING_SANITY_DEBUG"  # what a command prints of an error that it did not foresee


@dataclass
class Account:
    """What was seen of many files."""

    files: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    largest: int = 0
    broken: list[str] = field(default_factory=list)

    def tell(self, name: str) -> None:
        """Print a line, and what was broken."""
        codes = ", ".join(f"{code}: {count}" for code, count in sorted(self.codes.items()))
        print(
            f"{name:20s} {self.files:6d} files  exit codes {{{codes}}}  slowest {self.slowest:.2f} s  "
            f"largest {self.largest >> 20} MB  broken {len(self.broken)}",
            flush=True,
        )
        for problem in dict.fromkeys(self.broken[:20]):
            print(f"    {problem}")


@contextmanager
def watched_folder() -> Iterator[Path]:
    """An empty folder, which is the current one meanwhile."""
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as held:
        os.chdir(held)
        try:
            yield Path(held)
        finally:
            os.chdir(here)


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
        for name in after.keys() - before.keys():  # so that the next one, which may say the same, replaces none
            (folder / name).unlink()
        after = {name: after.get(name, "") for name in before}
    if after != before:
        problem = problem or f"changed {', '.join(sorted({name for name, _ in before.items() ^ after.items()}))}"
    return problem
