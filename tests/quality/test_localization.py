"""Localization by hand: pointing game, intersection over union, relevance mass."""

import pytest
import torch

from lightning_sanity.quality import iou_at_equal_area, pointing_game, relevance_mass

HEAT = torch.tensor([[[9.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]]).repeat(3, 1, 1)
OBJECTS = torch.tensor(
    [
        [[1, 1, 0], [0, 0, 0], [0, 0, 0]],
        [[0, 0, 0], [0, 0, 0], [0, 1, 1]],
        [[0, 0, 0], [0, 0, 0], [0, 0, 0]],
    ]
)


def test_pointing_game_by_hand():
    torch.testing.assert_close(pointing_game(HEAT, OBJECTS), torch.tensor([1.0, 0.0, torch.nan]), equal_nan=True)


def test_pointing_game_tolerates_a_near_miss():
    objects = torch.zeros(2, 3, 3)
    objects[0, 0, 2], objects[1, 1, 1] = 1, 1
    heat = HEAT[:2]
    assert pointing_game(heat, objects, tolerance=1).tolist() == [0, 0]  # 2 away; diagonal, so 1.4 away
    assert pointing_game(heat, objects, tolerance=2).tolist() == [1, 1]


def test_pointing_game_shares_a_tied_maximum():
    heat = torch.zeros(1, 3, 3)
    heat[0, 0, :2], heat[0, 2, :2] = 1, 1
    assert pointing_game(heat, OBJECTS[:1]).item() == 0.5


def test_iou_at_equal_area_by_hand():
    # The two largest are 9 (top left) and 8 (bottom right): one of two pixels on each object.
    expected = torch.tensor([1 / 3, 1 / 3, torch.nan])
    torch.testing.assert_close(iou_at_equal_area(HEAT, OBJECTS), expected, equal_nan=True)


def test_iou_at_equal_area_shares_ties_wherever_they_lie():
    heat = torch.zeros(1, 3, 3)
    heat[0, 0, 0] = 1  # the other pixel of the area is an eighth of each of the rest
    inside = 1 + 1 / 8
    expected = inside / (4 - inside)
    assert iou_at_equal_area(heat, OBJECTS[:1]).item() == pytest.approx(expected)
    assert iou_at_equal_area(heat.flip(1), OBJECTS[:1].flip(1)).item() == pytest.approx(expected)


def test_iou_at_equal_area_of_the_mask_itself_is_one():
    masks = torch.rand(6, 1, 9, 9) < 0.3
    torch.testing.assert_close(iou_at_equal_area(masks.float(), masks), torch.ones(6))


def test_relevance_mass_by_hand():
    heat = HEAT.clone()
    heat[0, 2] = -100
    expected = torch.tensor([10 / 24, 15 / 45, torch.nan])
    torch.testing.assert_close(relevance_mass(heat, OBJECTS), expected, equal_nan=True)


def test_relevance_mass_without_positive_relevance_is_nan():
    assert relevance_mass(-HEAT, torch.ones(3, 3, 3)).isnan().all()


@pytest.mark.parametrize("metric", [pointing_game, iou_at_equal_area, relevance_mass])
def test_localization_sums_channels_and_ignores_neighbours(metric):
    attributions, masks = torch.randn(5, 3, 8, 8), torch.rand(5, 8, 8) < 0.4
    alone = torch.cat([metric(a[None].sum(1), m[None]) for a, m in zip(attributions, masks, strict=True)])
    torch.testing.assert_close(metric(attributions, masks), alone)


@pytest.mark.parametrize("metric", [pointing_game, iou_at_equal_area, relevance_mass])
def test_localization_of_broken_maps_is_nan(metric):
    heat = HEAT.clone()
    heat[1, 0, 0] = torch.nan
    assert metric(heat, torch.tensor([[1, 1, 0]]).expand(3, 3, 3)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("metric", [pointing_game, iou_at_equal_area, relevance_mass])
def test_localization_refuses_masks_of_other_images(metric):
    with pytest.raises(ValueError, match=r"got \(3, 3, 3\) and \(2, 3, 3\)"):
        metric(HEAT, OBJECTS[:2])
