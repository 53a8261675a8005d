"""Several processes share a test; real gloo processes, forked."""

import math
from dataclasses import replace

import pytest
import torch
from made_processes import METHODS, forking, in_processes, own, whole

from lightning_sanity import Criterion
from lightning_sanity.engine import Engine
from lightning_sanity.engine.path import NotTraceable
from lightning_sanity.engine.proof import PlainPath
from lightning_sanity.explanation.measurements import agreement_of_twins
from lightning_sanity.explanation.targets import class_mask
from lightning_sanity.parameter_randomization import mprt as randomization_tests
from lightning_sanity.parameter_randomization import schedule, time_limit
from lightning_sanity.parameter_randomization.trained_maps import TrainedModel
from lightning_sanity.parameter_randomization.work_sharing import Division
from lightning_sanity.resources.budget import Interrupted, thin
from lightning_sanity.resources.processes import PeerFailed, Share

FEW = {name: METHODS[name] for name in ("gradient", "guided_backprop", "own")}


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
def test_tensors_arrive_as_they_were_sent(dtype):
    sent = {"some": torch.arange(6).reshape(2, 3).to(dtype).T, "one": torch.tensor(3).to(dtype)}
    for found in Share(0, 2, lambda part: [part, part]).exchange(sent):
        assert all(found[key].dtype is dtype and torch.equal(found[key], sent[key]) for key in sent)
        found["one"].fill_(1)  # nor are they read-only


def test_of_a_view_no_more_is_sent_than_it_shows():
    sizes = []
    Share(0, 2, lambda part: sizes.append(len(part)) or [part, part]).exchange(torch.zeros(10**6)[:10])
    assert sizes[0] < 1000


def test_owners_have_about_equally_much_to_do():
    costs = {item: 1.0 + item % 7 for item in range(50)}
    loads = [2.0, 0.0, 9.0]
    owners = Share(0, 3).owners(costs, loads)
    given = [sum(cost for item, cost in costs.items() if owners[item] == rank) for rank in range(3)]
    assert [2.0 + given[0], given[1], 9.0 + given[2]] == loads
    assert max(loads) - min(loads) <= 1.0


KINDS = {"gradient": "once", "gradcam": "once", "smoothgrad": "many times"}


@pytest.mark.parametrize("trials", [1, 4, 5, 20])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("walked", [(), ("gradient", "gradcam"), tuple(KINDS)])
def test_every_step_is_done_by_one_process_and_walks_by_whole_trials_or_kinds(trials, world, walked):
    passes = {"gradient": 1.0, "gradcam": 1.0, "smoothgrad": 8.0, "edge_detector": 0.0}
    kinds = {name: KINDS[name] for name in walked}
    divisions = [Division(Share(rank, world), passes, kinds, trials, 5) for rank in range(world)]
    for trial in range(trials):
        walking = {name: [each for each in divisions if name in each.walked(trial)] for name in walked}
        assert walking.get("gradient") == walking.get("gradcam")
        if trial < trials // world * world:
            assert len({id(each) for several in walking.values() for each in several}) == bool(walked)
        for depth in range(5):
            assert sum(each.tell(trial, depth) for each in divisions) == 1
            for name in passes:
                owners = [each for each in divisions if each.mine(name, trial, depth)]
                assert len(owners) == 1
                assert name not in walked or owners == walking[name]
    loads = divisions[0].loads
    assert max(loads) - min(loads) <= max(9.0, sum(loads) / trials * (len(walked) > 0))  # one step, or one walk


def test_who_has_one_walk_more_explains_less_of_the_rest():
    passes = {"gradient": 1.0, "gradcam": 1.0, "own": 1.0}
    divided = Division(Share(0, 2), passes, {"gradient": "once", "gradcam": "once"}, 5, 8)
    assert divided.walked(4) == ["gradient", "gradcam"]
    assert not any(divided.mine("own", 4, depth) for depth in range(8))
    assert sum(divided.loads) == pytest.approx(2 * max(divided.loads), rel=0.1)


def test_an_odd_trial_is_divided_by_the_kinds_of_its_walks():
    passes = {"gradient": 1.0, "guided_backprop": 1.0}
    divisions = [Division(Share(rank, 2), passes, {"gradient": 0, "guided_backprop": 1}, 3, 8) for rank in range(2)]
    assert [each.walked(trial) for trial in range(2) for each in divisions] == [list(passes), [], [], list(passes)]
    assert sorted(each.walked(2) for each in divisions) == [["gradient"], ["guided_backprop"]]
    assert divisions[0].loads[0] == divisions[0].loads[1]


@forking
@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow), 4])
def test_any_number_of_processes_finds_the_same_to_the_last_bit(digits_network, tmp_path, world):
    model, images, _ = digits_network
    alone = whole(model, images, Share(), trials=3)
    assert alone["settings"]["engine"]["smoothgrad"] == "two_stream"
    assert alone["settings"]["engine"]["own"] == "plain"
    for found in in_processes(world, tmp_path, lambda share: whole(model, images, share, trials=3)):
        assert found == alone


@forking
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"engine": "plain", "trials": 3},
        {"trials": "auto", "criterion": Criterion(0.95), "methods": "gradient"},
        {"diagnostics": ("cross_image", "random_logit", "entropy", "dependence")},
        {"order": "independent", "methods": ("gradient", "smoothgrad")},
        {"norm_stats": "recalibrate", "methods": ("gradient", "guided_backprop")},
        {"retarget": True, "methods": ("gradient", "guided_backprop")},
        {"max_memory": 2_000_000, "methods": ("gradient", "gradcam")},
    ],
    ids=str,
)
def test_processes_find_the_same_whatever_is_asked(digits_network, tmp_path, changes):
    model, images, _ = digits_network
    alone = whole(model, images, Share(), **changes)
    assert changes.get("trials") != "auto" or alone["settings"]["trials_run"]["gradient"] > 5
    for found in in_processes(2, tmp_path, lambda share: whole(model, images, share, **changes)):
        assert found == alone


@forking
def test_processes_that_share_a_question_about_regions_find_the_same(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(6, 3, 1)).eval()
    images, mask = torch.rand(6, 1, 12, 12), (torch.rand(6, 12, 12) > 0.5).float()

    def work(share):
        return whole(model, images, share, target=class_mask(1, mask), methods=("gradient", "input_x_gradient"))

    alone = work(Share())
    assert alone["settings"]["engine"]["gradient"] == "two_stream"
    for found in in_processes(2, tmp_path, work):
        assert found == alone


@forking
def test_twins_of_different_processes_are_compared_as_those_of_one(digits_network, tmp_path, monkeypatch):
    model, images, _ = digits_network
    agreements, walk = [], randomization_tests.walk_trials

    def listening(*arguments):
        found, unextended = walk(*arguments)
        agreements.append(float(agreement_of_twins(found.twins).mean()))
        return found, unextended

    def work(share):
        agreements.clear()
        whole(model, images, share, methods="gradient", trials=5)
        return agreements

    monkeypatch.setattr(randomization_tests, "walk_trials", listening)
    alone = list(work(Share()))
    assert 0 < abs(alone[0]) < 0.5
    assert in_processes(2, tmp_path, work) == [alone, alone]


@forking
def test_each_process_explains_about_its_part(digits_network, tmp_path):
    model, images, _ = digits_network

    def count(share):
        calls = []

        def counting(model, inputs, target):
            calls.append(1)
            return own(model, inputs, target)

        whole(model, images, share, methods={"counting": counting}, trials=4, max_steps=5, controls=False)
        return len(calls)

    total = count(Share())
    assert all(count <= 0.65 * total for count in in_processes(2, tmp_path, count))


@forking
def test_each_process_walks_and_draws_its_trials_alone(digits_network, tmp_path):
    model, images, _ = digits_network

    def count(share):
        drawn = []

        def drawing(module):
            drawn.append(1)
            module.reset_parameters()

        whole(model, images, share, reinitialize=drawing, methods="gradient", trials=4)
        return len(drawn)

    total = count(Share())
    assert in_processes(2, tmp_path, count) == [total // 2, total // 2]


@forking
def test_a_walk_that_fails_midway_on_one_process_is_made_up_for_there(digits_network, tmp_path):
    model, images, _ = digits_network

    def work(share):
        walk, count = Engine.trial, []

        def failing(engine, *arguments):
            count.append(1)
            if len(count) == 2:
                raise NotTraceable("on purpose")
            return walk(engine, *arguments)

        Engine.trial = failing if share.rank == 1 else walk
        return whole(model, images, share, methods=FEW, trials=5)

    alone = whole(model, images, Share(), methods=FEW, trials=5)
    one, two = in_processes(2, tmp_path, work)
    assert one == two
    assert one["settings"]["engine"] == dict.fromkeys(alone["settings"]["engine"], "plain")
    for name, verdict in one["verdicts"].items():
        assert verdict["outcome"] == alone["verdicts"][name]["outcome"]
        assert verdict["psi"] == pytest.approx(alone["verdicts"][name]["psi"], abs=1e-4)


@forking
def test_what_one_process_cannot_trace_no_process_walks(digits_network, tmp_path):
    model, images, _ = digits_network

    def work(share):
        if share.rank == 1:
            Engine.__init__ = refusing
        return whole(model, images, share, methods=FEW)

    def refusing(engine, *arguments):
        raise NotTraceable("on purpose")

    alone = whole(model, images, Share(), methods=FEW, engine="plain")
    assert in_processes(2, tmp_path, work) == [alone, alone]


@forking
def test_limited_in_time_each_process_still_walks_trials_of_its_own(digits_network, tmp_path):
    model, images, _ = digits_network

    def work(share):
        walk, walks = Engine.trial, []

        def counted(engine, *arguments):
            walks.append(len(engine.steps))
            return walk(engine, *arguments)

        Engine.trial = counted
        # On a busy machine two processes must still find the time to try a walk, which is why it is so much.
        limits = {"trials": 5000, "max_seconds": 10.0, "methods": ["gradient", "guided_backprop"]}
        return [whole(model, images, share, **limits), len(walks)]

    (one, walks), (two, others) = in_processes(2, tmp_path, work)
    assert one["verdicts"] == two["verdicts"]
    assert one["settings"]["engine"]["gradient"] == "two_stream"
    run = one["settings"]["trials_run"]["gradient"]
    assert 4 < run < 5000
    assert run / 2 - 1 <= min(walks, others)
    assert max(walks, others) <= 0.75 * run + 3


@forking
def test_one_process_explains_the_trained_model_and_another_its_noisy_copies(digits_network, tmp_path):
    model, images, _ = digits_network

    def work(share):
        explain, rows = Engine.explain, []

        def counted(engine, what, names):
            rows.append(len(what.inputs))
            return explain(engine, what, names)

        Engine.explain = counted
        whole(model, images, share, trials=1, repeats=3, methods=["gradient", "guided_backprop"])
        return rows

    assert sorted(in_processes(2, tmp_path, work)) == [[6], [18]]


def doubting(difference, asked):
    """In place of ``difference``: finds every map of Guided Backprop wrong."""

    def doubt(plain, name, *arguments):
        asked.append(name)
        return math.inf if name == "guided_backprop" else difference(plain, name, *arguments)

    return doubt


@forking
def test_what_one_process_cannot_prove_no_process_walks(digits_network, tmp_path, monkeypatch):
    model, images, _ = digits_network

    def work(share):
        if share.rank == 0:  # walks the first trial
            monkeypatch.setattr(PlainPath, "difference", doubting(PlainPath.difference, []))
        return whole(model, images, share, methods=FEW, trials=3)

    alone = work(Share())
    monkeypatch.undo()
    assert alone["settings"]["engine"]["guided_backprop"] == "plain"
    assert alone["settings"]["engine"]["gradient"] == "two_stream"
    assert in_processes(2, tmp_path, work) == [alone, alone]


@forking
def test_a_single_trial_that_processes_divide_in_a_hurry_is_proven_by_each_for_its_own(
    digits_network, tmp_path, monkeypatch
):
    model, images, _ = digits_network
    monkeypatch.setattr(PlainPath, "difference", doubting(PlainPath.difference, []))
    monkeypatch.setattr(TrainedModel, "_affordable", lambda *arguments: 1)  # there is no time for a walk beforehand
    monkeypatch.setattr(time_limit, "thin", lambda *a, **changes: replace(thin(*a, **changes), trials=1))
    limits = {"trials": 2, "max_seconds": 60.0, "methods": ["gradient", "guided_backprop"], "controls": False}
    for found in in_processes(2, tmp_path, lambda share: whole(model, images, share, **limits)):
        assert found["settings"]["trials_run"]["gradient"] == 1
        assert found["settings"]["engine"] == {"gradient": "two_stream", "guided_backprop": "plain"}


def test_what_was_not_proven_is_not_tried_again(digits_network, monkeypatch):
    model, images, _ = digits_network
    asked = []
    monkeypatch.setattr(PlainPath, "difference", doubting(PlainPath.difference, asked))
    monkeypatch.setattr(schedule, "undecided", lambda walk, gated, criterion, scope: list(gated))
    result = whole(model, images, Share(), trials="auto", methods=["gradient", "guided_backprop"])
    assert result["settings"]["trials_run"]["guided_backprop"] == 20
    assert asked.count("guided_backprop") == 2  # on the trained model, and in the first trial


@forking
def test_a_method_that_raises_on_one_process_is_given_up_on_all(digits_network, tmp_path):
    model, images, _ = digits_network

    def work(share):
        def broken(model, inputs, target):
            if share.rank == 1:
                raise ValueError("broken on purpose")
            return own(model, inputs, target)

        return whole(model, images, share, methods={"broken": broken, "gradient": "gradient"})

    one, two = in_processes(2, tmp_path, work)
    assert one == two
    assert "broken on purpose" in one["verdicts"]["broken"]["reason"]
    assert one["verdicts"]["gradient"]["psi"] > 0.3


@forking
@pytest.mark.parametrize("error", [OSError, Interrupted])
def test_a_process_that_fails_releases_the_others(tmp_path, error):
    def work(share):
        try:
            if share.rank == 1:
                raise error("gone")
            share.exchange("a part")
        except Exception as caught:
            share.fail(caught)
            return [type(caught).__name__, str(caught)]

    first, second = in_processes(2, tmp_path, work)
    wanted = Interrupted if error is Interrupted else PeerFailed
    assert first[0] == wanted.__name__
    assert "gone (on rank 1)" in first[1]
    assert second == [error.__name__, "gone"]


@forking
def test_processes_that_are_short_of_time_and_memory_walk_the_same(digits_network, tmp_path):
    model, images, _ = digits_network
    limits = {"max_seconds": 3.0, "max_memory": 3_000_000, "trials": 500, "methods": "gradient", "pictures": False}
    one, two = in_processes(2, tmp_path, lambda share: whole(model, images, share, **limits))
    assert one["settings"]["thinned"]["trials"][1] == 500
    for found in (one, two):
        assert found["settings"].pop("cost")["measured_seconds"] > 0
    assert one == two
