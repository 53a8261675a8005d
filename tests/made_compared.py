"""Results to lay side by side: two and many, equal and unequal sets of methods, and everything that goes wrong."""

from dataclasses import replace

from made_figures import EVIL, NAN, invalid, make_result, nothing_defined
from made_results import FAILING, OPEN, PASSING, made, made_of_labels

from lightning_sanity.result import Outcome, Verdict

LONG = "smoothgrad_of_the_second_branch_with_twenty_five_samples"


def run(similarity, weights="0", **changes):
    """A result about other weights than the next."""
    return made(similarity, weights_digest=weights * 64, **changes)


def _open(psi, low, high, reason="memorisation was not checked: pass it"):
    return Verdict(Outcome.INCONCLUSIVE, reason, psi, low, high, "ssim")


def two():
    """Four methods: one worse, one that may be, one better, one the same."""
    before = {"input_x_gradient": 0.2, "guided_backprop": FAILING, "gradcam": PASSING, "lime": OPEN}
    after = {"input_x_gradient": 0.75, "guided_backprop": 0.85, "gradcam": 0.12, "lime": 0.2}
    return [run(before), run(after, "1", step=9)]


def many(count=12, results=2):
    """So many methods with long names."""
    names = [f"method_with_quite_a_long_name_{k}" for k in range(count)]
    return [
        run({name: (0.08 * k + 0.17 * at) % 1 for k, name in enumerate(names)}, str(at), samples=8, trials=3)
        for at in range(results)
    ]


def unequal():
    """One method is gone, one is new and fails, one is new and passes, one was there for a while only."""
    return [
        run({"gradient": PASSING, "lime": OPEN}),
        run({"gradient": PASSING, "lime": OPEN, LONG: FAILING}, "1"),
        run({"gradient": PASSING, "rise": PASSING, "deconvnet": FAILING}, "2"),
    ]


def undefined():
    """In one result, in the other, in both; undecided by any measure; off the scale on both sides."""
    ok = Verdict(Outcome.PASS, "it changes", 0.93, 0.88, 0.97, "spearman")
    none = Verdict(Outcome.INCONCLUSIVE, "the maps carry no signal: under noise they are others", measure="ssim")
    first = {"lost": ok, "found": none, "never": none, "unchecked": _open(0.8, 0.7, 0.9), "beyond": ok, "below": ok}
    last = {
        "lost": none,
        "found": ok,
        "never": none,
        "unchecked": _open(0.5, NAN, NAN),
        "beyond": Verdict(Outcome.PASS, "far", 2.4, 1.9, 2.9, "ssim"),
        "below": Verdict(Outcome.FAIL, "opposite", -1.2, -1.4, -0.9, "ssim"),
    }
    return [make_result(methods=first, weights_digest="12"), make_result(methods=last)]


KINDS = {
    "two results": two,
    "one method": lambda: [run({"gradcam": PASSING}), run({"gradcam": 0.6}, "1")],
    "twelve methods": many,
    "five results": lambda: many(3, 5),
    "twenty results": lambda: many(2, 20),
    "unequal sets": unequal,
    "undefined": undefined,
    "invalid": lambda: [make_result(weights_digest="12"), invalid()],
    "nothing defined": lambda: [nothing_defined(), nothing_defined()],
    "other probe": lambda: [run({"gradcam": PASSING}), run({"gradcam": PASSING}, "1", probe_digest="b" * 64)],
    "two tests": lambda: [run({"gradcam": PASSING}), made_of_labels({"gradcam": PASSING})],
    "other version": lambda: [
        run({"gradcam": PASSING}),
        replace(run({"gradcam": OPEN}, "1"), environment={"torch": "3", "lightning-sanity": "99.0"}),
    ],
    "other settings": lambda: [run({"gradcam": PASSING}), run({"gradcam": OPEN}, "1", trials=9, samples=12)],
    "two thresholds": lambda: _thresholds(),
    "controls only": lambda: [run({}), run({}, "1")],
    "hostile names": lambda: [run({EVIL: PASSING, "x|y`_*": OPEN}), run({EVIL: FAILING, "x|y`_*": OPEN}, "1")],
}
"""Makers of lists of results by what is special about them."""


def _thresholds():
    first, last = run({"gradcam": OPEN}), run({"gradcam": OPEN}, "1")
    settings = {**last.settings, "criterion": {**last.settings["criterion"], "min_psi": 0.5}}
    return [first, replace(last, settings=settings)]
