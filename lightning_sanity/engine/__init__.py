"""The fast path: attributions of many depths of a cascade at once, equal to the plain loop's and checked against it.

    path.py        what the engine knows of a path; the model beside its copy with random weights
      streams.py     the better one: two streams, up and down; drawn there
        network.py     the model taken apart, operation by operation; each can run with trained or with random weights
        transcript.py  what a model does while it runs, as a graph; for what cannot be traced symbolically
        folding.py     the same with batch normalisation folded into the operation before it, on request
        plan.py        which depths differ from the trained model at which operation, and which go through it together
      full_batch.py  for what cannot be taken apart: stacked rows that modules with weights divide by depth
        recording.py   two runs of such a model, watched: where its rows lie, and whether it treats every sample alike
    opening.py     embeddings of token ids, which at some depths are random themselves
    rows.py        where the rows of samples lie in a value
    rounding.py    how far rounding alone may part two maps
    sums.py        what the parts of a pass add up to
    proof.py       the plain path on a few samples, which every walk must equal
    engine.py      what the methods need of a path, and as few walks as that takes

Outside this room nothing knows how the attributions of a trial were made.
"""

from lightning_sanity.engine.engine import BUDGET, ENGINES, FAILURES, Engine, Trial, engine_for
from lightning_sanity.engine.path import NotTraceable

__all__ = ["BUDGET", "ENGINES", "FAILURES", "Engine", "NotTraceable", "Trial", "engine_for"]
