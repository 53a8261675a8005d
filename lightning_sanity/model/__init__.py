"""What is known of a module and done to it, whatever the test.

graph.py       one eager forward pass, recorded: what each operation reads, where the maps are spatial
operations.py  what an operation does with what it reads: which rectify, which mix channels by a weight
hidden.py      what a pass reads that is neither input nor parameter
tensor_paths.py  where such a tensor hangs
constants.py   which of them are constant by nature
caches.py      what a model keeps of its weights, emptied as they change
outputs.py     which of the things that a model returns are its scores
clone.py       a live, detached copy of a module, and the proofs that it is one
detached.py    who a copy must not reach: the Trainer, its loggers and callbacks, the user's bookkeeping
structure.py   what is known of a structure while nothing but its weights changes, kept between tests
sharded.py     measuring in place where the weights are shards, of which no copy can be made
digest.py      fingerprints of weights: all that a state_dict holds
weights.py     the weights of a module, held whole or as shards; its own class
checkpoint.py  the weights in a file, read without executing anything in it
shards.py      the folder of a sharded distributed checkpoint, put together by its metadata
folders.py     other folders of weights: by their index, or how to make one file of them
pickled.py     a pickle read as data: no import, no call
archive.py     where things lie in zip archives and safetensors files
"""

from lightning_sanity.model.clone import CloneError

__all__ = ["CloneError"]
