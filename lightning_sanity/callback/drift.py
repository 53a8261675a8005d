"""How far saliency maps moved between two results on the same probe: two validations, or this release and the last."""

from __future__ import annotations

from lightning_sanity.result.sanity_result import SanityResult
from lightning_sanity.similarity import spearman


def drift(result: SanityResult, earlier: SanityResult) -> dict[str, float]:
    """Mean Spearman correlation between the trained models' maps of two results, per method that both hold.

    1 = the maps did not move. Small copies of at most 32 pixels a side are compared, as results keep them. Read it
    beside the verdicts: a method whose maps never drift while the model learns may not depend on it.

    Raises:
        ValueError: If the results are of different probes, so that their maps are not of the same inputs.
    """
    if result.probe_digest != earlier.probe_digest:
        raise ValueError(
            "the two results explain different probes, so their maps cannot be compared: measure both on one probe "
            f"(digests {result.probe_digest[:12]} and {earlier.probe_digest[:12]})"
        )
    common = [name for name in result.trained_maps if name in earlier.trained_maps]
    return {
        name: float(spearman(result.trained_maps[name].float(), earlier.trained_maps[name].float()).nanmean())
        for name in common
    }
