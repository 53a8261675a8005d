"""What the benchmarks share: flags, sides that take turns in one process, medians with their range, where it ran."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

Times = dict[str, list[float]]
_clock = time.perf_counter


class _ProcessorTime(argparse.Action):
    """Takes the time that the process was at work, whoever else was."""

    def __call__(self, parser, namespace, values, option_string=None):
        """Set the clock of this process."""
        global _clock
        _clock = time.process_time
        setattr(namespace, self.dest, True)


def now():
    """Seconds of the chosen clock."""
    return _clock()


def parser(script, repeats=3):
    """The flags of every benchmark; ``script`` is its docstring, whose first line is the question."""
    warnings.simplefilter("ignore")
    made = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=repeats)
    made.add_argument("--json", action="store_true")
    said = "processor time, not the wall clock: on one thread, no accelerator, where others work on the same machine"
    made.add_argument("--cpu-time", action=_ProcessorTime, nargs=0, default=False, help=said)
    made.add_argument("--equality-only", action="store_true", help="assert that the results are equal, time nothing")
    return made


def timed(function, *arguments):
    """Seconds of one call."""
    started = now()
    function(*arguments)
    return now() - started


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int) -> Times:
    """Seconds of every side, all sides in each round: what else the machine does then hits all of them alike.

    Each round begins with another side, so that none always runs behind the same neighbour.
    """
    names, times = list(sides), {name: [] for name in sides}
    for turn in range(repeats):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(timed(sides[name]))
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def ratio(times: Times, of: str, over: str) -> dict[str, float]:
    """Median and range of one side's time over another's of the same round."""
    return spread([a / b for a, b in zip(times[of], times[over], strict=True)])


def shown(found: Mapping[str, float], digits: int = 2) -> str:
    """``median [low, high]``."""
    return f"{found['median']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def environment() -> dict[str, object]:
    """Machine and versions; the load says whether the machine was quiet."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    found = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    for name in ("lightning-sanity", "torch", "torchvision", "lightning", "captum", "quantus"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def publish(given, rows: Iterable[Mapping[str, object]], line: Callable[[Mapping[str, object]], str]) -> None:
    """Print the rows: one object for ``--json``, else a line each under one that names machine and versions."""
    where = environment() | {"clock": "processor" if given.cpu_time else "wall"}
    if given.json:
        print(json.dumps({"environment": where, "rows": list(rows)}))
        return
    print(", ".join(f"{key} {round(value, 1) if key == 'load' else value}" for key, value in where.items()))
    for row in rows:
        print(line(row), flush=True)
