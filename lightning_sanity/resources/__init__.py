"""What a test may use of the machine, and leaves as it was: time, memory, processes, random streams.

restored_state.py  objects of the user's that a test calls: what the calls change in them is put back
budget.py          what of a test fits into a given time; an alarm for what hangs
files.py           files written whole, and never over what was read
fatal_errors.py    what may end a training from within a test
suggestions.py     a name that is none of the choices: what it may have meant
plain_yaml.py      YAML of strangers, of bounded depth and size
memory.py          what a computation keeps in memory at most, measured while it runs on few samples
processes.py       how several processes share one test, and how their parts come together
quoting.py         errors of other libraries and lists of names, as our messages quote them
progress.py        a caller's progress function, or a bar on a terminal
random_streams.py  reproducible random streams that are never the caller's
"""
