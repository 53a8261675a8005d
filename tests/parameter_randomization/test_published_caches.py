"""Published architectures that keep what they computed of trained weights are walked as if they did not."""

import pytest
import torch
from made_published import compared

pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["levit_128s", "efficientformer_l1", "tiny_vit_5m_224", "convit_tiny"])
def test_no_step_has_the_trained_map_where_the_uncached_network_changes(name):
    found, expected, kept = compared(name, max_steps=2)
    assert bool(kept) == (name != "convit_tiny")
    assert found.coverage.share == 1
    assert bool(found.coverage.notes and any("caches that are emptied" in note for note in found.coverage.notes)) == (
        kept > 0
    )
    changed = expected.curves["gradient", "spearman"].values < 1 - 1e-6
    assert bool((found.curves["gradient", "spearman"].values[changed] < 1 - 1e-6).all())
    for key, curve in expected.curves.items():
        torch.testing.assert_close(found.curves[key].values, curve.values, rtol=0, atol=1e-3, equal_nan=True)
