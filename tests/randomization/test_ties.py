import copy

import pytest
import torch
from made_ties import PARTED, WHOLE, Aliased, Autoencoder, Language, Translator, ids, made, rows
from torch import nn

from lightning_sanity import Outcome, parameter_randomization_test
from lightning_sanity.model.graph import trace
from lightning_sanity.randomization.strategies import redraw
from lightning_sanity.randomization.ties import part
from lightning_sanity.randomization.unit import plan
from lightning_sanity.resources.random_streams import generator


def parted(model, inputs):
    copied = copy.deepcopy(model)
    graph, notes = part(copied, trace(copied, (inputs,)), lambda: trace(copied, (inputs,)))
    return copied, graph, notes


def turn_of(model, graph):
    return {n: k for k, step in enumerate(plan(model, graph).steps) for unit in step.units for n in unit.parameters}


def judged(model, inputs, methods, **options):
    given = {"trials": 3, "repeats": 1, "pictures": False, "controls": False, **options}
    return parameter_randomization_test(model, inputs, torch.arange(len(inputs)) % 4, methods=methods, **given)


@pytest.mark.parametrize("case", PARTED)
def test_each_use_of_a_shared_weight_has_a_turn_of_its_own(case):
    make, inputs, names = PARTED[case]
    copied, graph, notes = parted(made(make), inputs())
    turns = turn_of(copied, graph)
    assert len({turns[name] for name in names}) == len(names)
    assert all(name in notes[0] for name in names)


@pytest.mark.parametrize("case", PARTED)
def test_a_parted_network_computes_what_it_did(case):
    make, inputs, _ = PARTED[case]
    model = made(make)
    copied, _, _ = parted(model, inputs())
    assert torch.equal(copied(inputs()), model(inputs()))
    assert torch.equal(copy.deepcopy(copied)(inputs()), model(inputs()))


@pytest.mark.parametrize("case", WHOLE)
def test_what_cannot_be_parted_or_gains_nothing_stays_as_it_was(case):
    make, inputs, repeated = WHOLE[case]
    model = made(make)
    copied, graph, notes = parted(model, inputs())
    assert notes == ()
    assert list(copied.state_dict()) == list(model.state_dict())
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]
    assert any("used several times" in note for note in plan(copied, graph).notes) == repeated


def test_a_name_that_nobody_calls_a_layer_by_stays_an_alias():
    copied, _, notes = parted(made(Aliased), rows())
    assert notes == (notes[0],)
    assert "backbone" not in notes[0]
    assert copied.backbone is copied.network[0]
    assert copied.backbone is not copied.network[2]


def test_towers_go_on_sharing_their_weight():
    copied, _, _ = parted(made(WHOLE["towers"][0]), rows())
    assert copied.left.weight is copied.right.weight


def test_the_users_model_stays_tied():
    model = made(Language)
    judged(model, ids(), ["gradient"])
    assert model.decoder.weight is model.embedding.weight


def test_a_tied_network_is_walked_as_the_same_network_untied():
    tied, untied = made(Language), made(lambda: Language("untied"))
    assert torch.equal(tied(ids()), untied(ids()))
    ours, theirs = (judged(model, ids(), ["gradient"]) for model in (tied, untied))
    assert ours.units == theirs.units
    assert torch.equal(ours.curves["gradient", "spearman"].values, theirs.curves["gradient", "spearman"].values)


@pytest.mark.parametrize("head", ["tied", "read", "untied"])
def test_a_map_of_the_embeddings_alone_fails_however_the_head_is_tied(head):
    copies = {"copy": lambda model, inputs, target: inputs[0]}
    found = judged(made(lambda: Language(head)), ids(16), copies, trials=5)
    assert found.verdicts["copy"].outcome is Outcome.FAIL


@pytest.mark.parametrize("case", ["two holders", "read by the decoder", "under three names", "transposed"])
def test_shared_walks_of_a_parted_network_are_the_plain_loops(case):
    make, inputs, _ = PARTED[case]
    ours, theirs = (judged(made(make), inputs(), ["gradient"], engine=engine).curves for engine in ("auto", "plain"))
    assert torch.allclose(ours["gradient", "spearman"].values, theirs["gradient", "spearman"].values, atol=1e-4)


@pytest.mark.parametrize("make", [Language, lambda: Language("read"), Autoencoder, Translator])
@pytest.mark.parametrize("how", ["normal", "reset", "factory", "function"])
def test_every_way_to_draw_reaches_every_use(make, how):
    model = made(make)
    inputs = rows() if make is Autoencoder else ids()

    def function(module):
        nn.init.normal_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias)

    given = {"factory": make, "function": function}.get(how, how)
    found = judged(model, inputs, ["gradient"], reinitialize=given, trials=1)
    assert found.coverage.share == 1
    assert not any(unit.kept for unit in found.coverage.units)


def test_a_function_of_a_module_draws_one_use_and_leaves_the_other():
    copied, graph, _ = parted(made(lambda: Language("read")), ids())
    before = copy.deepcopy(copied.state_dict())
    units = {name: unit for step in plan(copied, graph).steps for unit in step.units for name in unit.parameters}
    redraw(lambda module: nn.init.ones_(module.weight))(copied, units["embedding.weight_within"], generator(0))
    assert bool((copied.state_dict()["embedding.weight_within"] == 1).all())
    assert torch.equal(copied.state_dict()["embedding.weight"], before["embedding.weight"])
