"""Question: how much faster is a test that two processes share, and is its result the same?

A trained digits network, the callback's default methods and controls, five trials of every layer, 64 samples; every
process on one thread. Alone and shared runs take turns in the same processes; medians are printed, of the wall clock,
which wants two idle cores, and of the processor time of the busier process. The efficiency is one process's time over
that of two together: 1 where sharing is free. Processes that share explain depth by depth, so one process with the
engine, which they do not have, stands beside them. Before any timing the results of one, two and four processes are
asserted equal in every number.

    python benchmarks/ranks.py [--repeats 5] [--equality-only] [--json]
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measuring import parser, publish, ratio, shown, spread

from lightning_sanity import demo, parameter_randomization_test
from lightning_sanity.shares import Share

GOAL = 0.8
"""Of the efficiency of two processes."""


def gather(part):
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def measured(model, inputs, share, engine="plain", **changes):
    """Seconds and result; "plain", because one process with the engine sums in another order than several without."""
    started, worked = time.perf_counter(), time.process_time()
    result = parameter_randomization_test(
        model, inputs, trials=5, progress=False, share=share, engine=engine, **changes
    )
    seconds = time.perf_counter() - started, time.process_time() - worked
    return seconds, {key: value for key, value in result.to_dict().items() if key not in ("seconds", "created")}


def work(rank, world, folder, repeats):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/{world}", rank=rank, world_size=world)
    model, inputs = torch.load(f"{folder}/problem.pt", weights_only=False)
    share = lambda: Share(rank, world, gather)  # noqa: E731  # good for one test
    changes = {"methods": ("gradient", "gradcam", "guided_backprop", "smoothgrad", "edge_detector"), "max_steps": 3}
    equal = measured(model, inputs, share(), **changes)[1] == measured(model, inputs, Share(), **changes)[1]
    times = {"one": [], "engine": [], "shared": []}
    for _ in range(repeats):
        dist.barrier()
        if rank == 0:
            times["one"].append(measured(model, inputs, Share())[0])
            times["engine"].append(measured(model, inputs, Share(), "auto")[0])
        dist.barrier()
        times["shared"].append(measured(model, inputs, share())[0])
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps({"equal": equal, **times}))
    dist.barrier()
    dist.destroy_process_group()


def run(world, repeats):
    training, validation = demo.digits()
    arguments = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = demo.train(training, validation, epochs=2, seed=0, **arguments)
        torch.save((model.eval(), validation.tensors[0][: 64 if repeats else 8]), f"{folder}/problem.pt")
        mp.start_processes(work, (world, folder, repeats), nprocs=world, start_method="fork")
        found = [json.loads(Path(folder, f"{world}-{rank}.json").read_text()) for rank in range(world)]
    assert all(one["equal"] for one in found), f"{world} processes found something else than one"
    return found


def figures(clock, place, found):
    """One row per clock."""
    times = {side: [pair[place] for pair in found[0][side]] for side in ("one", "engine")}
    parts = zip(*(part["shared"] for part in found), strict=True)
    times["two"] = [max(pair[place] for pair in pairs) for pairs in parts]
    row = {"clock": clock} | {f"{side}_seconds": spread(each) for side, each in times.items()}
    row |= {"ratio": ratio(times, "two", "one"), "engine_ratio": ratio(times, "engine", "one")}
    return row | {"efficiency": 0.5 / row["ratio"]["median"], "goal": GOAL}


def line(row):
    seconds = f"{row['clock']}: one process {shown(row['one_seconds'])} s, two {shown(row['two_seconds'])} s"
    efficiency = f"ratio {shown(row['ratio'])}, efficiency {row['efficiency']:.2f} (goal {row['goal']:.2f})"
    return f"{seconds}: {efficiency}; one process with the engine: ratio {shown(row['engine_ratio'])}"


def main():
    given = parser(__doc__, repeats=5).parse_args()
    torch.set_num_threads(1)  # a fork must not find threads of its parent
    run(4, 0)
    found = run(2, 0 if given.equality_only else given.repeats)
    if given.equality_only:
        print("one, two and four processes: equal results")
        return
    publish(given, [figures(clock, place, found) for place, clock in enumerate(("wall", "cpu"))], line)


if __name__ == "__main__":
    main()
