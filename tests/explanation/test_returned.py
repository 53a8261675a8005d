"""What a method of somebody else's may return, and what is refused."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_sanity.explanation.returned import NoAttribution, attribution_of

IMAGES = torch.rand(3, 2, 6, 8)
ONE = torch.rand(3, 6, 8)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (IMAGES.half(), IMAGES.half()),
        (IMAGES.double(), IMAGES.double()),
        (IMAGES.to(torch.float8_e5m2), IMAGES.to(torch.float8_e5m2).float()),
        (IMAGES > 0.5, (IMAGES > 0.5).float()),
        ((IMAGES * 9).to(torch.uint8), (IMAGES * 9).to(torch.uint8).float()),
        ((IMAGES * 9).long(), (IMAGES * 9).long().double()),
        (IMAGES.numpy()[..., ::-1], IMAGES.flip(-1)),
        (IMAGES.numpy().astype(">f8"), IMAGES.double()),
        ([IMAGES], IMAGES),
        ((ONE,), ONE[:, None]),
        (ONE[:, None], ONE[:, None]),
        (ONE.numpy() > 0.5, (ONE > 0.5)[:, None].float()),
        (ONE[:, None].expand(3, 5, 6, 8), 5 * ONE[:, None]),
        (ONE[:, ::2, ::2], F.interpolate(ONE[:, None, ::2, ::2], (6, 8), mode="bilinear")),
        (IMAGES[..., :2, :2], F.interpolate(IMAGES[..., :2, :2].sum(1, keepdim=True), (6, 8), mode="bilinear")),
    ],
)
def test_real_numbers_of_any_width_and_maps_of_any_coarseness_are_attributions(returned, expected):
    found, _ = attribution_of(returned, IMAGES)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (IMAGES.to(torch.complex64), "complex numbers"),
        (IMAGES.to_sparse(), "sparse"),
        (IMAGES[:2], r"\(2, 2, 6, 8\) for an input of shape \(3, 2, 6, 8\)"),
        (torch.rand(3), r"\(3,\) for an input of shape"),
        (torch.rand(()), r"\(\) for an input of shape"),
        (torch.rand(3, 2, 1, 6, 8), r"\(3, 2, 1, 6, 8\) for an input of shape"),
        (torch.rand(3, 9, 9), r"\(3, 9, 9\) for an input of shape"),
        (torch.rand(3, 0, 6, 8), r"\(3, 0, 6, 8\) for an input of shape"),
        (None, "NoneType instead of a tensor"),
        ([IMAGES, IMAGES], "list instead of a tensor"),
        (np.array(["a"] * 3), "instead of numbers"),
    ],
)
def test_what_is_no_attribution_is_refused_with_what_it_is(returned, said):
    with pytest.raises(NoAttribution, match=said):
        attribution_of(returned, IMAGES)


@pytest.mark.parametrize("value", [torch.rand(3, 2, 9), torch.rand(3, 1, 4, 4, 4)], ids=["signal", "volume"])
def test_coarse_maps_of_signals_and_volumes_are_interpolated_along_every_side(value):
    coarse = value[:, 0, ..., ::2]
    found, remark = attribution_of(coarse, value)
    assert found.shape == (3, 1, *value.shape[2:])
    assert "interpolated" in remark


def test_columns_of_a_table_are_never_stretched():
    with pytest.raises(NoAttribution, match=r"\(3, 4\) for an input of shape \(3, 5\)"):
        attribution_of(torch.rand(3, 4), torch.rand(3, 5))


def test_an_attribution_shares_no_memory_with_what_was_returned():
    kept = torch.rand(3, 5)
    found, _ = attribution_of(kept, torch.rand(3, 5))
    before = found.clone()
    kept.zero_()
    assert torch.equal(found, before)
