"""Which weights become random, in what order, and how.

unit.py        units and steps: which parameters are re-initialised together, from the output to the input
layers.py      the layers of a recorded pass, and which of them reads what another made
granularity.py layers, blocks, or what a list of names asks for
ties.py        weights that several layers share: on a copy, each use has a tensor and a turn of its own
naming.py      what a person would call layers that become random together
strategies.py  normal, shuffle, reset, xavier, kaiming, a function: in place, and the proof of the change
twins.py       a strategy bound to a model and a seed: the same (trial, unit) always gets the same draw
"""

from lightning_sanity.randomization.strategies import reinitialize_
from lightning_sanity.randomization.unit import RandomizationError, Unit, units

__all__ = ["RandomizationError", "Unit", "reinitialize_", "units"]
