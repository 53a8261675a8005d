import copy

import pytest
import torch
from made_hidden import (
    CACHES,
    TRAINED,
    ByFlag,
    ByItsWeights,
    Experts,
    Network,
    OnTheWay,
    Uncached,
    constant,
    experts,
    inside,
    rows,
    trained,
)
from torch import nn

from lightning_sanity import Outcome, RandomizationError, SanityResult, parameter_randomization_test
from lightning_sanity.model import CloneError

SPEARMAN = "gradient", "spearman"


def measured(model, **options):
    given = {"methods": ["gradient"], "trials": 2, "repeats": 1, "controls": False, "pictures": False, **options}
    return parameter_randomization_test(model, rows(), progress=False, **given)


def curves(result):
    return result.curves[SPEARMAN].values


# ---------------------------------------------------------------------------------- trained tensors, not registered


@pytest.mark.parametrize("case", ["list", "closure", "int8 buffer", "weight below an adapter"])
def test_what_stays_trained_is_named_and_nothing_passes(case):
    result = measured(trained(case), trials=3)
    assert TRAINED[case][2] in result.coverage.hidden
    assert set(result.coverage.hidden) <= set(result.coverage.kept)
    assert result.coverage.share < 1
    assert {verdict.outcome for verdict in result.verdicts.values()} == {Outcome.INCONCLUSIVE}
    assert TRAINED[case][2] in result.verdicts["gradient"].reason
    assert not result.valid


def test_coverage_counts_what_stays_trained():
    model = trained("attribute")
    registered = sum(parameter.numel() for parameter in model.parameters())
    assert measured(model).coverage.share == pytest.approx(registered / (registered + model.held.numel()))


def test_a_declared_constant_is_noted_and_judged_as_if_it_were_none():
    result = measured(trained("attribute"), constants=["held"], trials=3)
    assert result.coverage.hidden == ()
    assert result.coverage.share == 1
    assert any("declared: held" in note for note in result.coverage.notes)
    assert "registered" not in result.verdicts["gradient"].reason


def test_a_constant_by_nature_is_noted():
    result = measured(constant("scale of the inputs"))
    assert result.coverage.hidden == ()
    assert any("scale of the inputs: mean, held" in note for note in result.coverage.notes)


def test_registering_what_was_named_gives_the_verdict_back():
    model = trained("list")
    model.held = nn.ModuleList(model.held)
    assert measured(model).coverage.share == 1


def test_hidden_tensors_survive_the_file(tmp_path):
    result = measured(trained("list"))
    assert SanityResult.from_json(result.to_json(tmp_path / "result.json")).coverage == result.coverage


@pytest.mark.parametrize("wrong", [7, ["("], [3]])
def test_constants_must_be_names_or_expressions(wrong):
    with pytest.raises(ValueError, match="constants"):
        measured(constant("mask"), constants=wrong)


def test_weights_that_are_all_in_a_list_end_in_advice():
    model = Network(lambda m: setattr(m, "held", [nn.Linear(20, 16)]), lambda m, x: m.held[0](x))
    model.head = nn.Identity()
    with pytest.raises(RandomizationError, match=r"nn\.ModuleList"):
        measured(model.eval())


# ------------------------------------------------------------------------------------------------ quantised weights


@pytest.fixture
def quantization():
    torch.backends.quantized.engine = next(e for e in torch.backends.quantized.supported_engines if e != "none")
    return torch.ao.quantization


@pytest.mark.filterwarnings("ignore")
def test_dynamically_quantised_layers_are_named_and_never_pass(quantization):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))
    dynamic = quantization.quantize_dynamic(model.eval(), {"2.0"}, dtype=torch.qint8)
    result = measured(dynamic, methods=["occlusion"])
    assert result.coverage.hidden == ("2.0: packed weight",)
    assert result.coverage.share == pytest.approx(1 - 256 / (256 + 21 * 16 + 17 * 4))
    assert result.verdicts["occlusion"].outcome is Outcome.INCONCLUSIVE
    assert "float model" in result.verdicts["occlusion"].reason


class InBytes(nn.Module):
    """A layer whose weight is a parameter of whole numbers, with one scale or one for each row."""

    def __init__(self, layer, rows):
        super().__init__()
        weight, self.bias = layer.weight.detach(), layer.bias
        size = weight.abs().amax(1, keepdim=True) if rows else weight.abs().max()
        self.register_buffer("size", size / 127)
        self.weight = nn.Parameter((weight / self.size).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.size, self.bias)


@pytest.mark.parametrize("rows", [False, True])
def test_weights_of_whole_numbers_are_named_and_never_pass(rows):
    torch.manual_seed(0)
    model = nn.Sequential(InBytes(nn.Linear(20, 16), rows), nn.ReLU(), nn.Linear(16, 4))
    result = measured(model, constants=["0.size"])
    assert result.coverage.hidden == ("0.weight",)
    assert result.coverage.share == pytest.approx(1 - 320 / (320 + 16 + 17 * 4))
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE
    assert "quantised weights" in result.verdicts["gradient"].reason
    assert "float model" in result.verdicts["gradient"].reason


class Waves(nn.Module):
    """A convolution and an LSTM over rows."""

    def __init__(self):
        super().__init__()
        self.first, self.steps, self.head = nn.Conv1d(1, 4, 3), nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.steps(self.first(x[:, None]).transpose(1, 2))[0].mean(1))


def partly_static(quantization):
    """Static quantisation of one layer among others of floats."""
    model = nn.Sequential(
        quantization.QuantStub(), nn.Linear(20, 8), quantization.DeQuantStub(), nn.Linear(8, 4)
    ).eval()
    for part in model[:3]:
        part.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(model)
    prepared(rows())
    return quantization.convert(prepared)


def prepared_by_graph(quantization):
    """Static quantisation of the whole model, in its traced form."""
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    mapping = quantization.get_default_qconfig_mapping(torch.backends.quantized.engine)
    prepared = prepare_fx(nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), mapping, (rows(),))
    prepared(rows())
    return convert_fx(prepared)


PACKED = {
    "recurrent": (lambda q: q.quantize_dynamic(Waves().eval(), {nn.LSTM}), "steps"),
    "one layer, statically": (partly_static, "1"),
}
WHOLE = {
    "dynamically": lambda q: q.quantize_dynamic(nn.Sequential(nn.Linear(20, 8), nn.Linear(8, 4)).eval(), {nn.Linear}),
    "statically, traced": prepared_by_graph,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PACKED)
def test_whatever_packs_its_weights_is_named_and_never_passes(case, quantization):
    torch.manual_seed(0)
    build, name = PACKED[case]
    result = parameter_randomization_test(
        build(quantization),
        rows(),
        torch.arange(len(rows())) % 4,
        methods="occlusion",
        trials=2,
        repeats=1,
        controls=False,
        progress=False,
    )
    assert result.coverage.hidden == (f"{name}: packed weight",)
    assert result.coverage.share < 1
    assert result.verdicts["occlusion"].outcome is Outcome.INCONCLUSIVE
    assert "float model" in result.verdicts["occlusion"].reason


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WHOLE)
def test_a_model_of_nothing_but_quantised_layers_is_told_to_be_passed_in_float(case, quantization):
    with pytest.raises(RandomizationError, match="pass the float model"):
        measured(WHOLE[case](quantization))


@pytest.mark.filterwarnings("ignore")
def test_a_statically_quantised_model_is_told_to_be_passed_in_float(quantization):
    model = nn.Sequential(quantization.QuantStub(), nn.Linear(20, 4), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    prepared = quantization.prepare(model)
    prepared(rows())
    with pytest.raises(RandomizationError, match="float model"):
        measured(quantization.convert(prepared))


@pytest.mark.filterwarnings("ignore")
def test_a_traced_model_is_refused_with_a_way_out():
    with pytest.raises(CloneError, match="traced"):
        measured(torch.jit.trace(nn.Linear(20, 4).eval(), rows()))


# ----------------------------------------------------------------------------------------------------------- caches


@pytest.fixture(scope="module")
def uncached():
    return measured(inside(Uncached), engine="plain")


# Nobody is told how to empty what a flag says is filled.
STATES = [(name, filled) for name in CACHES for filled in (False, True) if (name, filled) != ("ByFlag", True)]


@pytest.mark.parametrize(("name", "filled"), STATES)
def test_a_cache_changes_no_curve(name, filled, uncached):
    model = inside(CACHES[name])
    if filled:
        with torch.no_grad():
            model(rows())
    result = measured(model)
    assert result.units == uncached.units
    assert torch.equal(curves(result), curves(uncached))
    assert result.coverage.share == 1
    assert any("emptied" in note and "stored" in note for note in result.coverage.notes)
    assert not any("depends on the data" in note for note in result.coverage.notes)


def test_a_cache_that_cannot_be_emptied_is_named():
    model = inside(ByFlag)
    with torch.no_grad():
        model(rows())
    result = measured(model)
    assert result.coverage.hidden == ("2.stored",)
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE


def test_the_model_keeps_its_filled_cache():
    model = inside(CACHES["ByDevice"])
    with torch.no_grad():
        before = model(rows())
    stored = dict(model[2].stored)
    measured(model)
    assert model[2].stored == stored
    assert torch.equal(model(rows()), before)
    assert not model._forward_pre_hooks


# ------------------------------------------------------------------------------------- passes that go another way


@pytest.mark.parametrize("how", ["normal", "reset", Experts], ids=["normal", "reset", "factory"])
def test_experts_that_only_a_random_router_chooses_are_random(how):
    result = measured(experts(), reinitialize=how, trials=3)
    chosen = [name for unit in result.coverage.units for name in unit.parameters if name.startswith("experts.")]
    assert len(chosen) > 2
    assert all(name.startswith("experts.") for name in result.coverage.unused)
    assert len(chosen) + len(result.coverage.unused) == 12
    assert result.coverage.units[0].name == "head"
    assert set(chosen) - {"experts.0.weight", "experts.0.bias"} <= set(result.coverage.units[0].parameters)
    assert min(change for unit in result.coverage.units for change in unit.relative_change) > 0
    assert result.coverage.share == 1


def test_no_depth_runs_a_trained_expert_that_the_first_pass_did_not():
    model = experts()
    unread = copy.deepcopy(model)
    with torch.no_grad():
        for expert in unread.experts[1:]:
            for parameter in expert.parameters():
                parameter.copy_(parameter[torch.randperm(len(parameter))])
    # "shuffle" draws the same set of values for both, but in another order; "xavier" looks at shapes alone.
    assert torch.equal(curves(measured(model, reinitialize="xavier")), curves(measured(unread, reinitialize="xavier")))


def test_experts_in_a_list_are_found_when_a_random_router_chooses_them():
    result = measured(experts(list), trials=3)
    assert {"experts[0].weight"} < set(result.coverage.hidden)
    assert result.verdicts["gradient"].outcome is Outcome.INCONCLUSIVE


def test_what_only_a_pass_between_the_ends_reads_is_found():
    result = measured(OnTheWay().eval())
    assert result.units == ("head", "below")
    assert result.coverage.hidden == ("held[0]",)


def test_a_way_that_depends_on_weights_is_walked_one_depth_at_a_time():
    model = ByItsWeights().eval()
    shared, plain = (measured(model, target=0, trials=4, engine=engine) for engine in ("auto", "plain"))
    assert torch.equal(curves(shared), curves(plain))
    assert shared.engine == {"gradient": "plain"}
    assert any("random from the first step on: ways.1.bias, ways.1.weight" in note for note in plain.coverage.notes)


@pytest.mark.parametrize("case", ["closure", "global", "partial"])
def test_what_the_original_shares_with_its_copy_is_left_alone(case):
    model, inputs = trained(case), rows()
    before = model(inputs).detach()
    measured(model)
    assert torch.equal(model(inputs), before)
