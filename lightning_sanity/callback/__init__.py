"""The test inside a Trainer.

sanity_callback.py   the hooks: when the test runs, and what happens with the verdict
measurement.py       both tests on the weights as they are now, agreed between processes
fixed_probe.py       what is explained: the same samples at every validation and on every process
trainer.py           what is asked of a Trainer: whether to stop, other processes, where progress is shown
conclusion.py        the end of a run: what came out is said once, and raised where that was asked for
narration.py         what is said on the terminal
max_time.py          the account of time beside training
references.py        what a measurement is compared with
kept_state.py        what a user's checkpoint keeps of the last result
released_weights.py  the measured weights must be the released ones: what can come between
monitors.py          other callbacks that act on what is logged
scalars.py           the numbers a dashboard shows: always the same keys
drift.py             how far maps moved between two results on the same probe
result_files.py      where a run keeps its results: beside its checkpoints, in files that replace no other's
deferred_report.py   files and numbers at once, figures and page when there is time
"""

from lightning_sanity.callback.sanity_callback import SaliencySanityCallback

__all__ = ["SaliencySanityCallback"]
