"""The fast path: attributions of all depths of a cascade at once, equal to the plain loop's and checked against it.

    network.py   the traced model, operation by operation; each can run with trained or with random weights
    plan.py      which depths differ from the trained model at which operation, and which go through it together
    streams.py   the walk itself, up and down; drawn there
    engine.py    what the methods need of it, as few walks as that takes, and the proof

Outside this room nothing knows how the attributions of a trial were made.
"""

from lightning_sanity.engine.engine import BUDGET, ENGINES, FAILURES, Engine, Trial, engine_for
from lightning_sanity.engine.path import NotTraceable

__all__ = ["BUDGET", "ENGINES", "FAILURES", "Engine", "NotTraceable", "Trial", "engine_for"]
