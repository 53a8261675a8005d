"""Quality of attributions beside their sanity: passing the randomization tests is necessary, never sufficient.

    fidelity.py      infidelity, and sensitivity to small changes of the input
    faithfulness.py  deletion, insertion, and correlation with what removal does to the output
    localization.py  relevance against masks or boxes of the object
    convergence.py   does what is put in at an upper layer still matter further down?
    smoothing.py     a smooth sibling of a network

Every number is one per sample, NaN where it is undefined. Random draws come from torch's global CPU stream and are
shared by all samples, so that a sample's number does not depend on its neighbours. Models run in eval mode.
"""

from lightning_sanity.quality.convergence import cosine_similarity_convergence, gaussian_baseline
from lightning_sanity.quality.faithfulness import deletion_auc, faithfulness_correlation, insertion_auc
from lightning_sanity.quality.fidelity import LAWS, Perturbation, infidelity, max_sensitivity
from lightning_sanity.quality.localization import iou_at_equal_area, pointing_game, relevance_mass
from lightning_sanity.quality.smoothing import log_sum_exp_pool, smooth

__all__ = [
    "LAWS",
    "Perturbation",
    "cosine_similarity_convergence",
    "deletion_auc",
    "faithfulness_correlation",
    "gaussian_baseline",
    "infidelity",
    "insertion_auc",
    "iou_at_equal_area",
    "log_sum_exp_pool",
    "max_sensitivity",
    "pointing_game",
    "relevance_mass",
    "smooth",
]
