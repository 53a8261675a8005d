import pytest
import torch
from torch.nn import functional as F

from lightning_sanity.attribution.input_gradients import InputGradients

FIRST = {
    "signal": (F.conv1d, (2, 1, 1024), (4, 1, 7), {"stride": 2, "padding": 3}),
    "stem of a ResNet": (F.conv2d, (3, 3, 40, 40), (8, 3, 7, 7), {"stride": 2, "padding": 3}),
    "patches": (F.conv2d, (2, 3, 32, 32), (8, 3, 8, 8), {"stride": 8, "bias": True}),
    "uneven": (F.conv2d, (2, 2, 33, 41), (4, 2, 3, 5), {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}),
    "one channel each": (F.conv2d, (2, 4, 32, 32), (8, 1, 3, 3), {"padding": 1, "groups": 4}),
    "volume": (F.conv3d, (1, 1, 12, 12, 12), (4, 1, 3, 3, 3), {"padding": 1}),
}


def explained(operation, value, *arguments, cheaper, **options):
    """What an operation returns, and the gradient of a weighted sum of that at its input."""
    value = value.clone().requires_grad_()
    if cheaper:
        with InputGradients():
            made = operation(value, *arguments, **options)
    else:
        made = operation(value, *arguments, **options)
    weights = torch.randn(made.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((made * weights).sum(), value)
    return made.detach(), slope, type(made.grad_fn).__name__


STRIDED_POINTWISE = {
    "shortcut of a ResNet": (F.conv2d, (4, 16, 8, 8), (32, 16, 1, 1), {"stride": 2}),
    "uneven": (F.conv2d, (3, 6, 7, 10), (4, 3, 1, 1), {"stride": (3, 1), "groups": 2, "bias": True}),
    "signal": (F.conv1d, (2, 5, 31), (4, 5, 1), {"stride": 4}),
}


CHEAPER = [(name, case, "_FirstConvolutionBackward") for name, case in FIRST.items()]
CHEAPER += [(name, case, "_StridedPointwiseBackward") for name, case in STRIDED_POINTWISE.items()]


@pytest.mark.parametrize(("case", "expected_way"), [pytest.param(*rest, id=name) for name, *rest in CHEAPER])
def test_a_convolution_has_torchs_gradient_by_another_way(case, expected_way):
    operation, shape, kernel, options = case
    value, weight = torch.randn(shape), torch.randn(kernel)
    if options.get("bias"):
        options = options | {"bias": torch.randn(kernel[0])}
    made, slope, way = explained(operation, value, weight, cheaper=True, **options)
    plain, expected, usual = explained(operation, value, weight, cheaper=False, **options)
    assert way == expected_way != usual
    assert torch.equal(made, plain)
    assert (slope - expected).norm() <= 1e-6 * expected.norm()


POOLINGS = {
    "stem of a ResNet": ((2, 3, 12, 12), (3, 2, 1), {}),
    "as large as it steps": ((2, 3, 12, 10), (2,), {}),
    "uneven": ((2, 3, 11, 13), ((3, 2),), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "ceil_mode": True}),
}


@pytest.mark.parametrize("case", POOLINGS)
@pytest.mark.parametrize("pool", [F.max_pool2d, torch.max_pool2d], ids=["functional", "torch"])
def test_max_pooling_has_torchs_gradient_to_the_last_bit(case, pool):
    shape, arguments, options = POOLINGS[case]
    value = torch.randn(shape).relu()  # many pixels are equally large
    found = explained(pool, value, *arguments, cheaper=True, **options)
    expected = explained(pool, value, *arguments, cheaper=False, **options)
    assert found[2] == "_MaxPoolBackward" != expected[2]
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("case", ["pooling", "shortcut"])
def test_several_cotangents_at_once_go_down_as_one_after_the_other(case):
    value, weight = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randn(5, 4, 1, 1)
    with InputGradients():
        made = F.max_pool2d(value, 3, 2, 1) if case == "pooling" else F.conv2d(value, weight, stride=2)
    cotangents = torch.randn(3, *made.shape)

    def down(cotangent):
        return torch.autograd.grad(made, value, cotangent, retain_graph=True)[0]

    expected = torch.stack([down(cotangent) for cotangent in cotangents])
    assert torch.allclose(torch.func.vmap(down)(cotangents), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(2, 8, 32, 32), (2, 3, 8, 8), (3, 32, 32)], ids=["many channels", "few pixels", "no batch"]
)
def test_other_convolutions_keep_torchs_gradient_to_the_last_bit(shape):
    value, weight = torch.randn(shape), torch.randn(4, shape[-3], 3, 3)
    found = explained(F.conv2d, value, weight, cheaper=True)
    expected = explained(F.conv2d, value, weight, cheaper=False)
    assert found[2] == expected[2]
    assert torch.equal(found[1], expected[1])


def test_onednn_is_on_again_even_if_the_gradient_fails(monkeypatch):
    value, weight = torch.randn(1, 3, 32, 32, requires_grad=True), torch.randn(4, 3, 3, 3)
    with InputGradients():
        made = F.conv2d(value, weight)
    seen = []

    def failing(*arguments):
        seen.append(torch.backends.mkldnn.is_available() and torch._C._get_mkldnn_enabled())
        raise RuntimeError("out of memory")

    before = torch._C._get_mkldnn_enabled()
    monkeypatch.setattr(torch.ops.aten, "convolution_backward", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        torch.autograd.grad(made.sum(), value)
    assert seen == [False]
    assert torch._C._get_mkldnn_enabled() == before


@pytest.mark.parametrize("affine", [True, False])
def test_fixed_normalisation_has_torchs_gradient_to_the_last_bit(affine):
    value, mean, variance = torch.randn(4, 5, 6, 6), torch.randn(5), torch.rand(5) + 0.1
    given = (torch.randn(5), torch.randn(5)) if affine else (None, None)
    found = explained(F.batch_norm, value, mean, variance, *given, cheaper=True)
    expected = explained(F.batch_norm, value, mean, variance, *given, cheaper=False)
    assert found[2] == "_NormalizeBackward" != expected[2]
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_a_models_own_function_transforms_are_left_alone():
    value, weight = torch.randn(2, 3, 32, 32, requires_grad=True), torch.randn(4, 3, 3, 3)

    def one(image):
        return F.conv2d(image[None], weight).sum()

    with InputGradients():
        mapped = torch.func.vmap(one)(value)
    (slope,) = torch.autograd.grad(mapped.sum(), value)
    (expected,) = torch.autograd.grad(F.conv2d(value, weight).sum(), value)
    assert torch.allclose(slope, expected, atol=1e-5)
