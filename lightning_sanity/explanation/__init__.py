"""What is explained, and how maps are made of it; shared by both tests.

probe.py         the fixed batch that is explained, how it is chosen and how it is recognised
inputs.py        arrays and lists as tensors
request.py       of which input, by which call, for which number per sample
targets.py       numbers to explain where a class index does not say it: masks, positions, boxes, embeddings
tokens.py        token ids, explained at their embeddings
axes.py          what the axes of an input are, told by what the network does with it
kinds.py         kinds of input: reduction to maps, measures that suit, drawing; the way from the user's axes to ours
options.py       what both tests can be told, stated once: types, defaults, documentation
calling.py       the model called on the probe, and what is said where that fails
preparation.py   a quiet copy, the explained class, the methods that apply
lineup.py        the methods of a test and what they explain: names, controls, guests, kinds of input
dependence.py    whether what a model says of a sample depends on the others in its batch
maps.py          attributions reduced to maps, and their comparison with the trained model's
gradient_path.py  where the gradient is lost on its way to the input
guests.py        methods that are not ours: fresh inputs, and what they leave behind is put back
lent_model.py    the model that a guest gets: its tensors are copies, its modules are put back
lent_settings.py  settings and random streams around a guest
remedies.py      what to do about a method that failed, told by its error
returned.py      what such a method returned, as an attribution
explainer.py     runs methods: one random stream for all models, within memory and time
reach.py         where a map can differ from 0 at all
suitable_measures.py  which similarities mean something on which inputs
measurements.py  what a test measured of one method, filled by trials
provenance.py    what a result says of how it came about
"""

from lightning_sanity.explanation.targets import Target
from lightning_sanity.explanation.tokens import Tokens

__all__ = ["Target", "Tokens"]
