"""The test inside a Trainer.

sanity_callback.py   the hooks: when the test runs, and what happens with the verdict
trainer.py           what is asked of a Trainer: data, other processes, whether to stop, where progress is shown
narration.py         what is said on the terminal
max_time.py          the account of time beside training
released_weights.py  the measured weights must be the released ones: what can come between
monitors.py          other callbacks that act on what is logged
scalars.py           the numbers a dashboard shows: always the same keys
drift.py             how far maps moved between two results on the same probe
home.py              where a run keeps its results: beside its checkpoints, in files that replace no other's
deferred_report.py   files at once, figures and page when there is time
"""

from lightning_sanity.callback.sanity_callback import SaliencySanityCallback

__all__ = ["SaliencySanityCallback"]
