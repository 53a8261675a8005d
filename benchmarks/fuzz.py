"""Does any file make a command crash, hang, eat memory, write where it should not, or say yes?

    python benchmarks/fuzz.py --reader checkpoint --seconds 180 --seed 1 --keep found

Whole commands run on files that were good once and were then changed, at random and with a seed: bytes are flipped,
cut, repeated and spliced, and what a format holds inside (values of JSON and YAML, the pickle in an archive, the
header of safetensors) is changed so that the outside still fits. After each file: exit code and output, processor
time, peak memory, every file in a watched folder, and what the reader asks of an exit code 0.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import time
import warnings
from pathlib import Path

from measuring.mutations import changed_bytes
from measuring.readers import READERS, Reader, measured
from measuring.watched import Account, tried, watched_folder

SHORT = 40  # files for each reader where only the proof is asked for


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
        most = (SHORT if name != "config" else SHORT // 8) if arguments.equality_only else None
        with watched_folder() as folder:
            account = fuzz(name, folder, seed=arguments.seed, seconds=arguments.seconds, most=most, keep=arguments.keep)
        account.tell(name)
        broken |= bool(account.broken)
    if arguments.equality_only:
        assert not broken
    sys.exit(1) if broken else None


if __name__ == "__main__":
    main()
