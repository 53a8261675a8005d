import pytest
import torch
from made_hidden import sinusoids

from lightning_sanity.model.constants import Role, kind_of

MIXES, SHIFTS = {Role.MIXES}, {Role.SHIFTS}


def flat_square(side, width):
    """Sines of both coordinates of a square, its positions in one row after the other."""
    one = sinusoids(side, width)
    return torch.cat([one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)], -1).reshape(side * side, -1)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


FORMULAS = {
    "sinusoids": sinusoids(50, 16)[None],
    "sinusoids of a square": flat_square(7, 8),
    "the same below a class token": torch.cat([torch.zeros(1, 16), flat_square(7, 8)]),
    "cosine transform": torch.cos(torch.pi / 20 * (torch.arange(20.0)[:, None] + 0.5) * torch.arange(20)),
    "frequencies": 10000.0 ** -(torch.arange(0, 32, 2) / 32),
    "sinusoids, standardised": (sinusoids(50, 16) - sinusoids(50, 16).mean()) / 3,
    "coordinates": torch.stack(torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 7), indexing="ij"), -1),
    "blur": (torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1]) / 16).expand(8, 1, 3, 3),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_table_of_a_formula_is_constant_even_where_it_mixes(name):
    assert kind_of(FORMULAS[name], MIXES) == "table of a formula"


@pytest.mark.parametrize("shape", [(16, 8), (6, 8), (50, 16), (8, 4, 3, 3), (64,), (7, 1), (49, 4), (1, 12, 5)])
@pytest.mark.parametrize("roles", [MIXES, SHIFTS])
def test_a_drawn_tensor_is_never_constant(shape, roles):
    assert kind_of(drawn(*shape), roles) is None


def test_quantised_values_are_no_table():
    weight = (40 * drawn(32, 20)).round() / 40
    assert kind_of(weight, MIXES) is None
    assert kind_of((40 * weight).to(torch.int8), MIXES) is None


def test_binary_weights_are_no_mask_but_binary_masks_are():
    signs = drawn(16, 16).sign()
    assert kind_of(signs, MIXES) is None
    assert kind_of(signs, SHIFTS) == "mask"
    assert kind_of((signs + 1) / 2, MIXES) == "mask"


def test_a_bias_of_two_values_is_no_mask():
    assert kind_of(torch.tensor([0.3, -1.2]), SHIFTS) is None


def test_a_vector_scales_inputs_only_before_any_weight():
    mean = drawn(3, 1, 1)
    assert kind_of(mean, {Role.SHIFTS_INPUT}) == "scale of the inputs"
    assert kind_of(mean, {Role.SHIFTS_INPUT, Role.SHIFTS}) is None


def test_a_picture_added_to_the_inputs_is_no_scale():
    assert kind_of(drawn(3, 8, 8), {Role.SHIFTS_INPUT}) is None


def test_a_damaged_formula_counts_as_trained():
    table = sinusoids(50, 16)
    table[:, 3] += 0.05 * drawn(50)
    assert kind_of(table, SHIFTS) is None
