import pytest
import torch

from lightning_sanity.explanation.maps import Maps, Reference
from lightning_sanity.similarity import resolve, within

SIMILARITIES = [resolve(name) for name in ("ssim", "spearman", "spearman_signed", "spearman_support", "hog", "kendall")]


def maps(seed, samples, side):
    signed = torch.randn(samples, side, side, generator=torch.Generator().manual_seed(seed))
    signed[0] = signed[0].relu()  # many ties
    return Maps(signed, signed.abs())


@pytest.mark.parametrize(("samples", "side", "depths"), [(5, 16, 7), (3, 200, 3), (1, 16, 4)])
def test_several_depths_compared_at_once_are_as_alike_as_one_by_one(samples, side, depths):
    support = torch.rand(samples, side, side) > 0.3
    reference = Reference(maps(0, samples, side), SIMILARITIES, support)
    several = [maps(1 + depth, samples, side) for depth in range(depths)]
    shifts = [1 + depth % (samples - 1) if samples > 1 else 0 for depth in range(depths)]
    found = list(reference.against_each(several, shifts))
    assert [each for each, _ in found] == several
    for (_, pairs), each, shift in zip(found, several, shifts, strict=True):
        for name, expected in reference.against(each, shift).items():
            for ours, theirs in zip(pairs[name], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12, equal_nan=True)


def test_several_depths_are_compared_within_a_mask_as_one_by_one():
    mask = torch.rand(5, 16, 16, generator=torch.Generator().manual_seed(1)) > 0.5
    inside = [within(resolve(name), mask) for name in ("spearman", "spearman_signed", "pearson", "cosine_signed")]
    reference = Reference(maps(0, 5, 16), inside, None)
    several = [maps(1 + depth, 5, 16) for depth in range(4)]
    for (_, pairs), each in zip(reference.against_each(several, [1, 2, 3, 4]), several, strict=True):
        for name, (same, _) in reference.against(each, 1).items():
            torch.testing.assert_close(pairs[name][0], same, rtol=0, atol=1e-12)


def test_small_maps_of_several_depths_are_ranked_together(monkeypatch):
    ranked = []
    spearman = resolve("spearman")
    counting = type(spearman)(
        "counting", "magnitude", lambda m: ranked.append(len(m)) or spearman.prepare(m), spearman.compare, "none"
    )
    reference = Reference(maps(0, 4, 8), [counting], None)
    list(reference.against_each([maps(d, 4, 8) for d in range(6)], [1] * 6))
    assert ranked == [4, 24]
