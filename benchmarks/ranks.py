"""Question: how much faster is a test that two processes share, and is its result the same?

The callback's default methods and controls on a trained digits network and on a ResNet-18 at 32 px, every layer, 64 and
8 samples; four, five and ten trials, of which five cannot be even. Every process has one thread. Whole and shared runs
take turns in the same processes; medians are printed, of the wall clock, which wants two idle cores, and of the
processor time of the busier process. Two busy cores are slower than one, which is no matter of how work is shared: so
the processor time is compared with that of two processes that each run the whole test at the same time. The efficiency
is half of a whole run's time over that of a shared one: 1 where sharing is free. Before any timing the results of one,
two and four processes are asserted equal in every number.

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
from measuring import networks, parser, publish, ratio, shown, spread

from lightning_sanity import parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.resources.processes import Share

GOAL = 0.8
"""Of the efficiency of two processes."""
TRIALS = {"digits": (4, 5, 10), "resnet18": (4,)}


def gather(part):
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return parts


def measured(problem, share, trials, **changes):
    """Seconds by both clocks, and the result."""
    started, worked = time.perf_counter(), time.process_time()
    result = parameter_randomization_test(*problem, trials=trials, progress=False, share=share, **changes)
    seconds = time.perf_counter() - started, time.process_time() - worked
    return seconds, {key: value for key, value in result.to_dict().items() if key not in ("seconds", "created")}


def work(rank, world, folder, repeats):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", f"file://{folder}/{world}", rank=rank, world_size=world)
    problems = torch.load(f"{folder}/problems.pt", weights_only=False)
    share = lambda: Share(rank, world, gather)  # noqa: E731  # good for one test
    changes = {"methods": ("gradient", "gradcam", "guided_backprop", "smoothgrad", "edge_detector"), "max_steps": 3}
    model, inputs = problems["digits"]
    few = model, inputs[:8]
    equal = measured(few, share(), 5, **changes)[1] == measured(few, Share(), 5, **changes)[1]
    times = {(name, trials): {"alone": [], "beside": [], "shared": []} for name in problems for trials in TRIALS[name]}
    for _ in range(repeats):
        for (name, trials), sides in times.items():
            dist.barrier()
            if rank == 0:
                sides["alone"].append(measured(problems[name], Share(), trials)[0])
            dist.barrier()
            sides["beside"].append(measured(problems[name], Share(), trials)[0])
            dist.barrier()
            sides["shared"].append(measured(problems[name], share(), trials)[0])
    found = [[*key, sides] for key, sides in times.items()]
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps({"equal": equal, "times": found}))
    dist.barrier()
    dist.destroy_process_group()


def run(world, repeats):
    training, validation = demo.digits()
    arguments = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "limit_val_batches": 0}
    with tempfile.TemporaryDirectory() as folder:
        model, _ = demo.train(training, validation, epochs=2, seed=0, **arguments)
        large = networks.resnet(32, 8)
        problems = {"digits": (model.eval(), validation.tensors[0][:64]), "resnet18": (large.model, large.inputs)}
        torch.save(problems, f"{folder}/problems.pt")
        mp.start_processes(work, (world, folder, repeats), nprocs=world, start_method="fork")
        found = [json.loads(Path(folder, f"{world}-{rank}.json").read_text()) for rank in range(world)]
    assert all(one["equal"] for one in found), f"{world} processes found something else than one"
    return [part["times"] for part in found]


def figures(found):
    """One row per network, number of trials and clock."""
    rows = []
    for place, (name, trials, _) in enumerate(found[0]):
        sides = [part[place][2] for part in found]  # of every process
        for column, clock, whole in ((0, "wall", sides[0]["alone"]), (1, "cpu", sides[0]["beside"])):
            shared = zip(*(each["shared"] for each in sides), strict=True)
            times = {"one": [pair[column] for pair in whole]}
            times["two"] = [max(pair[column] for pair in pairs) for pairs in shared]
            seconds = {f"{side}_seconds": spread(each) for side, each in times.items()}
            over = ratio(times, "two", "one")
            row = {"network": name, "trials": trials, "clock": clock, **seconds, "ratio": over}
            rows.append(row | {"efficiency": 0.5 / over["median"], "goal": GOAL})
    return rows


def line(row):
    seconds = f"one process {shown(row['one_seconds'])} s, two {shown(row['two_seconds'])} s"
    efficiency = f"ratio {shown(row['ratio'])}, efficiency {row['efficiency']:.2f} (goal {row['goal']:.2f})"
    return f"{row['network']}, {row['trials']} trials, {row['clock']}: {seconds}: {efficiency}"


def main():
    given = parser(__doc__, repeats=5).parse_args()
    torch.set_num_threads(1)  # a fork must not find threads of its parent
    run(4, 0)
    found = run(2, 0 if given.equality_only else given.repeats)
    if given.equality_only:
        print("one, two and four processes: equal results")
        return
    publish(given, figures(found), line)


if __name__ == "__main__":
    main()
