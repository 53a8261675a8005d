"""Question: what does a test of one trial spend its time on, beside the explanations that it cannot do without?

Every piece of one test of the gradient on a ResNet-18, in milliseconds and as a share of one bare gradient, which is
one captum call on the batch. The pieces are functions of the library, each timed by its name with all that it calls;
only of a walk the proof, the draws and what is left of the cascade's bookkeeping are told apart. Every round measures
the bare loop and the bare gradient as well; medians of the rounds.

    OMP_NUM_THREADS=1 python benchmarks/fixed_part.py --cpu-time [--sizes 32 64 224] [--batch 8] [--trials 1]
    OMP_NUM_THREADS=1 python benchmarks/fixed_part.py --cpu-time --again    the same module a second time
"""

from __future__ import annotations

import functools
import importlib
import statistics
from collections import defaultdict
from contextlib import contextmanager

import torch
from engine import ONE, bare, captum_calls, difference, made, whole
from measuring import now, parser, publish

_ROOM = "lightning_sanity."
PIECES = {
    "copy of the model": ["model.sharded:clone", "parameter_randomization.cascade:snapshot"],
    "recorded pass": ["explanation.preparation:trace"],
    "fidelity": ["explanation.preparation:_few", "explanation.preparation:call"],
    "liveness": ["explanation.preparation:check_liveness"],
    "leftovers": ["parameter_randomization.mprt:leftovers_of"],
    "units": ["parameter_randomization.mprt:plan", "parameter_randomization.mprt:part"],
    "data-dependent paths": ["parameter_randomization.mprt:other_paths"],
    "samples apart": ["explanation.lineup:in_one"],
    "reach": ["parameter_randomization.mprt:within_reach"],
    "methods prepared": ["parameter_randomization.mprt:prepared_methods"],
    "taken apart (fx, rows)": ["parameter_randomization.cascade:engine_for"],
    "reference maps": ["engine.engine:Engine.explain"],
    "proof": ["engine.engine:Engine.proven", "engine.engine:Engine._prove"],
    "noise guard": [
        "parameter_randomization.trained_maps:TrainedModel._guard",
        "parameter_randomization.trained_maps:TrainedModel._of_noisy",
    ],
    "other methods' maps": ["explanation.explainer:Explainer.__call__"],
    "draws": ["randomization.twins:redraw", "engine.path:Path.start_trial"],
    "walk over all depths": ["engine.engine:Engine.trial"],
    "similarities": [
        "explanation.maps:Reference.against",
        "explanation.maps:Reference._againststacked",
        "explanation.maps:Reference.to_one_another",
        "explanation.maps:Reference.__init__",
    ],
    "statistics and verdict": ["parameter_randomization.mprt:_judged", "parameter_randomization.cascade:Cascade.walk"],
    "digest": ["parameter_randomization.mprt:weights_digest", "parameter_randomization.mprt:unsaved_buffers"],
    "pictures": [
        "parameter_randomization.mprt:_pictures",
        "parameter_randomization.cascade:pictured",
        "parameter_randomization.trained_maps:pictured",
        "parameter_randomization.trained_maps:coarse",
    ],
    "coverage, settings": ["parameter_randomization.mprt:_Ready.coverage", "parameter_randomization.mprt:_settings"],
}
"""What each piece is made of: ``module:name``."""
OPEN = ("walk over all depths",)
"""Pieces whose own pieces are counted apart."""
REST = "all else"


class Stopwatch:
    """Adds up the time of each piece; what is counted apart inside an open one is taken off."""

    def __init__(self):
        self.spent = defaultdict(float)
        self._inside, self._closed = [], False

    @contextmanager
    def piece(self, name):
        """Everything inside is of this piece, unless it is inside a closed one already."""
        if self._closed:
            yield
            return
        self._closed = name not in (*OPEN, REST)
        begun = now()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took, self._closed = now() - begun, False
            self.spent[name] += took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took

    def around(self, name, function):
        """The same function, its time counted."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            with self.piece(name):
                return function(*args, **kwargs)

        return timed

    def drawing(self, name, function):
        """``redraw`` returns the function that draws, which is the one to count."""

        @functools.wraps(function)
        def timed(*args, **kwargs):
            return self.around(name, function(*args, **kwargs))

        return timed


@contextmanager
def watched(stopwatch):
    """Inside the block every piece is timed."""
    kept = []
    try:
        for piece, places in PIECES.items():
            for place in places:
                room, _, path = place.partition(":")
                holder = importlib.import_module(_ROOM + room)
                *outer, leaf = path.split(".")
                for each in outer:
                    holder = getattr(holder, each)
                kept.append((holder, leaf, getattr(holder, leaf)))
                wrap = stopwatch.drawing if leaf == "redraw" else stopwatch.around
                setattr(holder, leaf, wrap(piece, kept[-1][2]))
        yield
    finally:
        for holder, leaf, function in kept:
            setattr(holder, leaf, function)


def profiled(size, batch, trials, repeats, again):
    """One row: seconds of every piece, of one bare gradient and of the bare loop."""
    problem, planned = made("resnet18", size, batch)
    (gradient,) = captum_calls(problem, ONE)
    whole(problem, ONE, "auto", trials)  # what a first call of anything loads is there already
    rounds = []
    for _ in range(repeats):
        if not again:
            problem, planned = made("resnet18", size, batch)
            (gradient,) = captum_calls(problem, ONE)
        stopwatch = Stopwatch()
        with stopwatch.piece("bare loop"):
            bare(problem, ONE, planned)
        with stopwatch.piece("one bare gradient"):
            for _ in range(4):
                gradient(problem.inputs.clone().requires_grad_())
        stopwatch.spent["one bare gradient"] /= 4
        with watched(stopwatch), stopwatch.piece(REST):
            whole(problem, ONE, "auto", trials)
        rounds.append(stopwatch.spent)
    names = ["bare loop", "one bare gradient", *PIECES, REST]
    found = {name: statistics.median(spent[name] for spent in rounds) for name in names}
    return {"size": size, "batch": batch, "trials": trials, "depths": len(planned), "seconds": found}


def shown(row):
    found = dict(row["seconds"])
    loop, one = found.pop("bare loop"), found.pop("one bare gradient")
    total = sum(found.values())
    title = f"{row['size']} px, {row['batch']} samples, {row['trials']} trial(s)"
    lines = [f"{title}: one bare gradient {one * 1e3:.1f} ms, bare loop {loop * 1e3:.0f} ms, test {total * 1e3:.0f} ms"]
    lines[0] += f" = {total / loop / row['trials']:.2f} of it"
    lines += [f"    {name:30} {took * 1e3:7.1f} ms   {took / one:5.2f} gradients" for name, took in found.items()]
    return "\n".join(lines)


def main():
    flags = parser(__doc__)
    flags.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    flags.add_argument("--batch", type=int, default=8)
    flags.add_argument("--trials", type=int, default=1)
    flags.add_argument("--again", action="store_true", help="keep the module between rounds, as validations do")
    given = flags.parse_args()
    torch.set_num_threads(1)
    if given.equality_only:
        problem, planned = made("resnet18", 32, 2)
        print(f"maps differ by at most {difference(problem, ONE, planned):.0e} of their norm")
        return
    rows = (profiled(size, given.batch, given.trials, given.repeats, given.again) for size in given.sizes)
    publish(given, list(rows), shown)


if __name__ == "__main__":
    main()
