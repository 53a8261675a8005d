"""Which method to show: every candidate screened, tested, scored; the answer with its evidence.

    choosing.py      the front door: model and samples in, Choice out
    options.py       what a choice can be told, and which candidates there are
    budget.py        what it may spend
    tiers.py         which candidates are tried and tested together, in which order, until when
    search.py        the search: screen, test, score, compare, as far as the budget reaches
    subject.py       a copy of the model and the batch, ready to be explained
    explainable.py   is there anything to explain?
    variants.py      methods with other parameters: repairs, and what tuning tries
    subgroups.py     the answer by group, and where a method keeps its map
    profile.py       what of the weights the recommended method's map depends on
    screening.py     every candidate runs on a sample or two
    gate.py          the sanity test in front of the ranking, few trials first
    faithfulness.py  the columns that methods are ranked by
    ranking.py       from verdicts and scores to the answer

and the statistics, pure functions of numbers that know no model:

    contest.py       methods scored on the same samples: intervals, who beats the baselines, who may be the best
    pareto.py        several columns at once: who is undominated, what is recommended, do the columns agree
    halves.py        parameters tuned on one half of the samples and judged on the other
    agreement.py     do methods' maps agree: matrices, clusters, the samples on which two differ most
    groups.py        the same per group of samples; methods that keep their map on one group
    racing.py        when a sanity verdict may be given early, however often one looks
"""

from lightning_sanity.choice.budget import Budget
from lightning_sanity.choice.choosing import choose_methods

__all__ = ["Budget", "choose_methods"]
