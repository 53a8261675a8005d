"""Which method to show: the statistics behind the answer.

    contest.py    methods scored on the same samples: intervals, who beats the baselines, who may be the best
    pareto.py     several columns at once: who is undominated, what is recommended, do the columns agree
    halves.py     parameters tuned on one half of the samples and judged on the other
    agreement.py  do methods' maps agree: matrices, clusters, the samples on which two differ most
    groups.py     the same per group of samples; methods that keep their map on one group
    racing.py     when a sanity verdict may be given early, however often one looks

Everything here is a pure function of numbers; nothing knows a model.
"""
