"""How alike two saliency maps are: batches of maps ``(N, H, W)`` in, one number per sample out, 1 = the same.

registry.py       similarities by name; a pair of functions each, prepare once and compare often
correlation.py    rank and linear correlation, cosine, distances; on part of a map
ordering.py       Kendall, and the share of the largest pixels in common
ranks.py          average ranks with exact ties, and inversions between two rankings
structural.py     SSIM and multi-scale SSIM
histograms.py     histograms of oriented gradients
normalization.py  what is done to maps before they are compared
support.py        the pixels of an input that stand out from a constant background
"""

from lightning_sanity.similarity.correlation import cosine, euclidean, mse, pearson, spearman
from lightning_sanity.similarity.histograms import hog, hog_descriptor
from lightning_sanity.similarity.normalization import diverging, min_max, percentile_clipped, second_moment
from lightning_sanity.similarity.ordering import kendall, top_k_overlap
from lightning_sanity.similarity.ranks import average_ranks
from lightning_sanity.similarity.registry import Similarity, available, normalized, resolve, within
from lightning_sanity.similarity.structural import ms_ssim, ssim
from lightning_sanity.similarity.support import support_of

__all__ = [
    "Similarity",
    "available",
    "average_ranks",
    "cosine",
    "diverging",
    "euclidean",
    "hog",
    "hog_descriptor",
    "kendall",
    "min_max",
    "ms_ssim",
    "mse",
    "normalized",
    "pearson",
    "percentile_clipped",
    "resolve",
    "second_moment",
    "spearman",
    "ssim",
    "support_of",
    "top_k_overlap",
    "within",
]
