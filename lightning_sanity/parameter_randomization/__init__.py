"""The model parameter randomization test: do maps change when the weights become random?

mprt.py          the front door: model and probe in, result out
multi_input.py   models of several inputs, each explained in its turn
options.py       what the test can be told, for the function, the callback and the command line
schedule.py      how many trials are walked: a given number, or as many as open verdicts need
looks.py         when verdicts are looked at while trials are added, and who needs more
settings.py      how a cascade is walked
study.py         what is studied: the trained model, the explanation of it, how maps are compared
route.py         which steps are walked, and which of them left the outputs as they were
cascade.py       the walk: re-initialise, explain again, compare
trained_maps.py  what is known of the trained model before any weight is random
walk_results.py  what a walk measured as a whole
leftovers.py     what no step re-initialises though a pass computes with it
coverage.py      the proof of what was re-initialised
judging.py       whether the run can be trusted, and the verdicts
diagnostics.py   second opinions of the literature, which never gate
complexity.py    entropy of maps, and how much it rises
time_limit.py    what of a walk fits into a limit on time, and the account of it
timing.py        what trials will take, measured on the walk itself
headroom.py      how much is explained at once where memory is limited
work_sharing.py  who explains what where several processes share a walk
"""

from lightning_sanity.parameter_randomization.mprt import parameter_randomization_test
from lightning_sanity.parameter_randomization.multi_input import multi_input_randomization_test

__all__ = ["multi_input_randomization_test", "parameter_randomization_test"]
