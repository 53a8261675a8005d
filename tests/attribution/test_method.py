"""What every attribution method must keep, and the names it goes by."""

import copy
import logging
import pickle

import pytest
import torch
from made_methods import MINE
from made_networks import cnn
from torch import nn

from lightning_sanity import attribution
from lightning_sanity.attribution import available, resolve, resolve_all, table
from lightning_sanity.attribution.batching import Rows
from lightning_sanity.attribution.differences import deepshap
from lightning_sanity.attribution.gradient_cam import scorecam
from lightning_sanity.attribution.gradients import smoothgrad, vargrad
from lightning_sanity.attribution.method import Method, output_gradient
from lightning_sanity.attribution.path import integrated_gradients
from lightning_sanity.attribution.relevance import lrp_alpha_beta

CONTROLS = ["output_pattern", "edge_detector", "input_copy", "input_plus_gradient", "random", "constant"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gradient", lambda x, w: w.expand_as(x)),
        ("input_x_gradient", lambda x, w: x * w),
        ("integrated_gradients", lambda x, w: x * w),
        ("integrated_gradients_local", lambda x, w: w.expand_as(x)),
        ("smoothgrad", lambda x, w: w.expand_as(x)),
        ("smoothgrad_squared", lambda x, w: (w**2).expand_as(x)),
        ("vargrad", lambda x, w: torch.zeros_like(x)),
        ("deeplift", lambda x, w: x * w),
        ("deeplift_local", lambda x, w: w.expand_as(x)),
        ("deepshap", lambda x, w: (x - x.mean(0)) * w),
        ("deepshap_local", lambda x, w: w.expand_as(x)),
    ],
)
def test_linear_model_has_the_closed_form(name, expected):
    model = nn.Linear(6, 2)
    x = torch.randn(4, 6)
    found = resolve(name)(model, x, torch.ones(4, dtype=torch.long))
    torch.testing.assert_close(found, expected(x, model.weight[1].detach()), atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------- what every method must keep


@pytest.mark.parametrize("name", [*MINE, *(c for c in CONTROLS if c != "random")])
def test_a_sample_ignores_its_neighbours(batch, name):
    model, (x, target) = cnn(), batch
    method = resolve(name)
    function = method.prepare(model, x) if method.prepare is not None else method.attribute
    changed = x.clone()
    changed[1] = 5 * torch.rand(3, 12, 12)
    torch.manual_seed(7)
    first = function(model, x, target)
    torch.manual_seed(7)
    second = function(model, changed, torch.tensor([0, 4, 2]))
    torch.manual_seed(7)
    alone = function(model, x[:1], target[:1])
    scale = float(first[0].abs().max()) + 1e-12
    torch.testing.assert_close(second[[0, 2]], first[[0, 2]], atol=1e-6 * scale, rtol=1e-5)
    torch.testing.assert_close(alone[0], first[0], atol=1e-5 * scale, rtol=1e-4)


def signature(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), type(m),
          getattr(m, "inplace", None)) for name, m in model.named_modules()],
        [(name, p.requires_grad, p.grad is None, p.data_ptr()) for name, p in model.named_parameters()],
    )  # fmt: skip


@pytest.mark.parametrize("name", [*MINE, *CONTROLS])
def test_method_leaves_the_model_untouched(batch, name):
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()  # fmt: skip
    model[0].weight.requires_grad_(False)
    x, target = batch
    state, modules, parameters = signature(model)
    before = x.clone()
    method = resolve(name)
    assert method.refuses is None or method.refuses(model, x, target) is None
    method(model, x, target)
    if name not in CONTROLS or "gradient" in name:  # the others never run the model
        with pytest.raises(OwnError):
            raise_in(model, lambda: method(model, x, target))
    after = signature(model)
    assert after[1:] == (modules, parameters)
    assert all(torch.equal(after[0][key], state[key]) for key in state)
    assert torch.equal(x, before)
    assert not x.requires_grad


class OwnError(Exception):
    """Raised by the model itself, and by nothing else."""


def raise_in(model, act):
    """Act while the model's last layer raises."""

    def fail(module, arguments):
        raise OwnError

    handle = model[-1].register_forward_pre_hook(fail)
    try:
        act()
    finally:
        handle.remove()


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "expected_gradients", "deepshap", "scorecam"])
def test_chunks_do_not_show_in_the_result(batch, name):
    model = cnn()
    found = []
    for most in (1, 4, 1000):
        torch.manual_seed(3)
        found.append(attribution.registry._METHODS[name](max_batch=most)(model, *batch))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in MINE if name != "cam"])
def test_second_input_is_passed_through_row_by_row(name):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = cnn()

        def forward(self, x, scale):
            return self.inner(x) * scale[:, None]

    model, x, target = Scaled(), torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2])
    method = resolve(name)
    torch.manual_seed(2)
    found = method(model, (x, torch.ones(3)), target)
    torch.manual_seed(2)
    expected = method(model.inner, x, target)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_gradient_methods_refuse_token_ids_with_advice():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    tokens, target = torch.randint(9, (2, 5)), torch.tensor([0, 1])
    for name in MINE:
        reason = resolve(name).refuses(model, tokens, target)
        assert reason is not None, name
        assert "explain the embeddings" in reason or "not (N, C, H, W)" in reason


@pytest.mark.parametrize("name", ["gradcam", "scorecam", "internal_influence", "cam", "deepshap", "lrp_z_plus"])
def test_prepared_method_follows_the_weights(batch, name):
    model = cnn()
    method = resolve(name)
    function = method.prepare(model, batch[0]) if method.prepare is not None else method.attribute
    before = function(model, *batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    after = function(model, *batch)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, method(model, *batch))


def test_out_of_memory_halves_the_rows_and_says_so(caplog):
    rows, seen = Rows(8, "example"), []

    def run(samples, copies):
        if (samples.stop - samples.start) * len(copies) > 3:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
        seen.extend((s, c) for s in range(samples.start, samples.stop) for c in copies)

    with caplog.at_level(logging.WARNING):
        list(rows.chunks(5, 4, run))
    assert sorted(seen) == [(s, c) for s in range(5) for c in range(4)]
    assert rows.limit <= 3
    assert "out of memory with 5 rows at once" in caplog.text
    with pytest.raises(RuntimeError, match="not enough memory"):
        list(Rows(8, "example").chunks(1, 1, lambda *_: (_ for _ in ()).throw(RuntimeError("not enough memory"))))


# --------------------------------------------------------------------------------------------------- names and objects


def test_registry_lists_every_method_with_what_a_user_must_know():
    rows = {row["name"]: row for row in table()}
    assert tuple(rows) == available()
    assert set(MINE) | set(CONTROLS) <= set(rows)
    assert all(row["summary"].endswith((".", "signed.")) for row in rows.values())
    assert [name for name, row in rows.items() if row["needs"] == "xrai"] == ["xrai"]
    assert all(row["needs"] is None for name, row in rows.items() if name != "xrai")
    assert not rows["vargrad"]["signed"]
    assert rows["gradient"]["signed"]
    assert [row["name"] for row in rows.values() if row["control"]] == CONTROLS


def test_missing_extra_is_named_when_the_method_is_asked_for(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "xrai" in available()
    with pytest.raises(ImportError, match=r"pip install 'lightning-sanity\[xrai\]'"):
        resolve("xrai")


def test_resolve_takes_methods_with_parameters_by_name():
    found = resolve_all({"ig": integrated_gradients(n_steps=64, baseline="blur"), "plain": "gradient"})
    assert list(found) == ["ig", "plain"]
    assert found["ig"].passes == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: integrated_gradients(n_steps=0), "n_steps must be at least 1, not 0"),
        (lambda: integrated_gradients(baseline="grey"), "unknown baseline 'grey'; choose from: blur, max, mean, min"),
        (lambda: smoothgrad(noise=-1), "noise must be at least 0"),
        (lambda: vargrad(n_samples=1), "n_samples must be at least 2"),
        (lambda: lrp_alpha_beta(alpha=3), "alpha - beta must be 1"),
        (lambda: deepshap(n_baselines=0), "n_baselines must be an integer of at least 1"),
        (lambda: scorecam(max_batch=0), "max_batch must be at least 1"),
        (lambda: resolve("salency"), "unknown attribution method 'salency'; did you mean gradient.* choose from: "),
    ],
)
def test_bad_parameter_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_factory_itself_is_not_a_method():
    with pytest.raises(TypeError, match="pass 'smoothgrad' or smoothgrad"):
        resolve(smoothgrad)


def negated(model, inputs, target):
    return -output_gradient(model, inputs, target)


@pytest.mark.parametrize("name", available())
def test_a_method_survives_pickle_and_copy(name):
    method = resolve(name)
    for again in (pickle.loads(pickle.dumps(method)), copy.deepcopy(method)):
        assert (again.name, again.signed, again.control) == (method.name, method.signed, method.control)


@pytest.mark.parametrize(
    "method",
    [integrated_gradients(n_steps=3), smoothgrad(n_samples=2, noise=0.5), Method("own", negated)],
    ids=["steps", "noise", "own"],
)
def test_a_pickled_method_explains_as_it_did(method, batch):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh(), nn.Linear(8, 4))
    maps = []
    for each in (method, pickle.loads(pickle.dumps(method))):
        torch.manual_seed(2)
        maps.append(each(model, *batch))
    assert torch.equal(*maps)
