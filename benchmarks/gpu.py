"""Question: what does the whole test cost on a GPU, beside the gradients alone and beside a loop of captum calls?

ResNet-18, ResNet-50 and four blocks of ViT-Tiny, 32, 64 and 224 px, float32 and bfloat16: one bare gradient per unit
and one of the trained model, the same by captum, and the whole test with one trial and with five, per bare loop. Beside
them the bytes at the peak above the model, and how often the host waited for the device within a test of one trial and
of three: the difference is what further trials wait. Before any timing of a case the maps of all depths in float32 are
asserted equal to captum's. At last the tests that need a GPU are run.

    python benchmarks/gpu.py [--networks resnet18 resnet50 vit_tiny] [--sizes 32 64 224] [--batch 16]
        [--precisions float32 bfloat16] [--device cuda] [--no-tests] [--json]

With ``--device cpu`` it runs anywhere, to see that it runs: memory is then not measured, and waits are those that the
operations tell: verdicts, which are given on the CPU in any case, are among them, and copies of libraries are not.
"""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from engine import ONE, bare, difference, draws, whole
from measuring import now, parser, publish, shown, spread
from measuring.networks import NETWORKS, Problem
from measuring.waiting import watched
from torchvision.models import resnet50

from lightning_sanity.randomization import units

TRIALS = 5


def deeper(size, batch):
    """ResNet-50."""
    shallow = NETWORKS["resnet18"](size, batch)
    model = resnet50(num_classes=100).eval()
    return Problem("resnet50", model, shallow.inputs, model(shallow.inputs).argmax(1), layer="layer3")


CASES = {"resnet18": NETWORKS["resnet18"], "resnet50": deeper, "vit_tiny": NETWORKS["vit_tiny"]}


def problem_on(device, name, size, batch, precision):
    """The network and its batch there, in that precision."""
    torch.manual_seed(0)
    made = CASES[name](size, batch)
    kind = getattr(torch, precision)
    model = copy.deepcopy(made.model).to(device, kind)
    return replace(made, model=model, inputs=made.inputs.to(device, kind), target=made.target.to(device))


def gradients(problem, planned):
    """What no test can do without: a gradient of the trained model and one for every unit."""
    model, saved = problem.model, {key: each.clone() for key, each in problem.model.state_dict().items()}
    redraw = draws()
    for unit in (None, *planned):
        if unit is not None:
            redraw(model, unit)
        inputs = problem.inputs.clone().requires_grad_()
        scores = model(inputs).gather(1, problem.target[:, None]).sum()
        torch.autograd.grad(scores, inputs)
    model.load_state_dict(saved)


def timed(work, device, repeats):
    """Seconds of a call, the device's work included; the first call is not counted."""
    found = []
    for _ in range(repeats + 1):
        _settle(device)
        started = now()
        work()
        _settle(device)
        found.append(now() - started)
    return found[1:]


def _settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waits(work, device):
    """How often the host waited for the device; on a CPU, how often it would."""
    if device.type != "cuda":
        with watched() as found:
            work()
        return found.total()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in found)


def peak(work, device):
    """Bytes at the peak above what is there before; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def measured(name, size, precision, given):
    """A row of the table."""
    device = torch.device(given.device)
    problem = problem_on(device, name, size, given.batch, precision)
    planned = units(problem.model, problem.inputs[:2])
    row = {"network": name, "size": size, "batch": given.batch, "precision": precision, "units": len(planned)}
    if precision == "float32":
        row["difference"] = difference(problem, ONE, planned)
    sides = {
        "gradients": lambda: gradients(problem, planned),
        "captum": lambda: bare(problem, ONE, planned),
        "one": lambda: whole(problem, ONE, "auto"),
        "five": lambda: whole(problem, ONE, "auto", TRIALS),
        "five, all": lambda: whole(problem, ONE, "auto", TRIALS, max_steps=None),
    }
    times = {side: timed(work, device, given.repeats) for side, work in sides.items()}
    row["seconds"] = spread(times["gradients"])
    for side in sides:
        loops = TRIALS if side.startswith("five") else 1
        row[side] = spread([a / b / loops for a, b in zip(times[side], times["gradients"], strict=True)])
    row["peak"] = {side: peak(sides[side], device) for side in ("captum", "one", "five")}
    row["waits"] = [waits(lambda trials=trials: whole(problem, ONE, "auto", trials), device) for trials in (1, 3)]
    return row


def line(row):
    what = f"{row['network']}, {row['units']} units, {row['size']} px, batch {row['batch']}, {row['precision']}"
    parts = [f"{side} {shown(row[side])}" for side in ("captum", "one", "five", "five, all")]
    said = f"{what}: gradients alone {shown(row['seconds'])} s; {', '.join(parts)}"
    if isinstance(row.get("difference"), float):
        said += f"; maps differ by at most {row['difference']:.0e} of their norm"
    said += f"\n    waits in one and three trials: {row['waits']}"
    if row["peak"]["one"] is not None:
        said += "; MiB above the model: " + ", ".join(
            f"{side} {size / 2**20:.0f}" for side, size in row["peak"].items()
        )
    return said


def main():
    flags = parser(__doc__)
    flags.add_argument("--networks", nargs="+", choices=CASES, default=list(CASES))
    flags.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 224])
    flags.add_argument("--batch", type=int, default=16)
    flags.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    flags.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    flags.add_argument("--no-tests", action="store_true", help="leave out the tests that need a GPU")
    given = flags.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if given.equality_only:
        problem = problem_on(torch.device(given.device), "vit_tiny", 32, 2, "float32")
        off = difference(problem, ONE, units(problem.model, problem.inputs[:2]))
        print(f"on {given.device} maps differ from captum's by at most {off:.0e} of their norm")
        return
    cases = [(name, size, kind) for name in given.networks for size in given.sizes for kind in given.precisions]
    publish(given, (measured(*case, given) for case in cases), line)
    if torch.device(given.device).type == "cuda" and not given.no_tests:
        tests = Path(__file__).parent.parent / "tests"
        sys.exit(subprocess.call([sys.executable, "-m", "pytest", "-q", "-k", "gpu", str(tests)]))


if __name__ == "__main__":
    main()
