"""Question: is the recommended method the best where the right attribution is known by construction?

Eight networks (`measuring/known.py`), built by hand or trained on labels that depend on a known part of the input. The
choice does not see that part. Afterwards every candidate's map is compared with it: overlap of as many of its largest
positions as the part has (intersection over union, 1 = exactly these). A recommendation is right if it is the best by
that or cannot be told apart from the best on these samples, among the methods that passed the sanity test and among all
candidates.

    python benchmarks/known_answers.py [--seeds 0 1] [--json]
"""

from __future__ import annotations

import torch
from measuring import now, parser, publish
from measuring.known import NETWORKS, made
from scipy import stats

from lightning_sanity import choose_methods
from lightning_sanity.attribution import resolve_all
from lightning_sanity.choice.contest import compare
from lightning_sanity.choice.options import DEFAULTS
from lightning_sanity.choice.subject import laid_out, subject
from lightning_sanity.explanation.maps import AttributionFailed
from lightning_sanity.explanation.request import asked_of
from lightning_sanity.parameter_randomization.options import DEFAULTS as OF_WALK
from lightning_sanity.quality.localization import iou_at_equal_area

CANDIDATES = (
    "gradient",
    "input_x_gradient",
    "integrated_gradients",
    "integrated_gradients_local",
    "smoothgrad",
    "guided_backprop",
    "deeplift",
    "lrp_epsilon",
    "gradcam",
    "occlusion",
)
RIGHT = {
    "right among passed": "best or tied of those that passed",
    "set holds it": "the recommended set holds the best that passed",
    "right among all": "best or tied of all candidates",
}


def overlaps(known, names):
    """Overlap with the truth per method ``(N,)``; of methods that cannot run, nothing."""
    options = {**OF_WALK, "max_steps": DEFAULTS["max_steps"]}
    asked = asked_of(known.model, known.inputs, known.target, options, None)
    found = {}
    with subject(known.model, asked, resolve_all(list(names), None), options, None) as on:
        for name in names:
            try:
                for _, maps in on.maps([name]):
                    heat = laid_out(
                        maps.magnitude, known.truth.float()[:, None] if known.truth.ndim > 2 else known.truth
                    )
                    rows = (len(heat), -1, heat.shape[-1])
                    found[name] = iou_at_equal_area(heat.reshape(rows).float(), known.truth.reshape(rows)).double()
            except AttributionFailed:
                continue
    return found


def studied(name, samples, seed, candidates=CANDIDATES):
    """What is recommended, and whether it is the best by the truth."""
    known = made(name, samples, seed)
    began = now()
    choice = choose_methods(
        known.model, known.inputs, known.target, candidates=list(candidates), seed=seed, progress=False, profile=False
    )
    seconds = now() - began
    truth = overlaps(known, [row.method for row in choice.table if row.verdict is not None])
    passed = {row.method for row in choice.table if row.verdict is not None and row.verdict.passed}
    among = {
        "passed": compare({m: each for m, each in truth.items() if m in passed}),
        "all": compare(truth),
    }
    shown = choice.recommended
    return {
        "network": name,
        "seed": seed,
        "accuracy": known.accuracy,
        "recommended": shown,
        "tied": list(choice.tied),
        "right among passed": None if shown is None else shown in among["passed"].tied,
        "set holds it": None if shown is None else among["passed"].best in choice.recommended_set,
        "right among all": None if shown is None else shown in among["all"].tied,
        "overlap": None if shown is None else float(truth[shown].nanmean()),
        "best that passed": among["passed"].best,
        "its overlap": float(truth[among["passed"].best].nanmean()) if passed else None,
        "overlaps": {m: round(float(each.nanmean()), 3) for m, each in truth.items()},
        "verdicts": {row.method: str(row.verdict.outcome.value) for row in choice.table if row.verdict is not None},
        "reason": choice.reason,
        "explained": dict(choice.spent),
        "seconds": seconds,
    }


def line(row):
    said = {True: "right", False: "WRONG", None: "none"}
    best = "nothing passed" if row["its overlap"] is None else f"{row['best that passed']} {row['its overlap']:.2f}"
    own = "" if row["overlap"] is None else f"{row['overlap']:.2f}"
    rights = ", ".join(f"{said[row[right]]} ({among})" for right, among in RIGHT.items())
    return (
        f"{row['network']:15s} seed {row['seed']}, accuracy {row['accuracy']:.2f}  {row['recommended']!s:27s} {own:4s} "
        f" {rights}  best that passed: {best}  {row['seconds']:.0f} s"
    )


def rates(rows):
    """Share of right recommendations with its 95 % interval over runs, and how often there is none."""
    given = [row for row in rows if row["recommended"] is not None]
    for right, among in RIGHT.items():
        hits = sum(row[right] for row in given)
        if given:
            low, high = stats.binomtest(hits, len(given)).proportion_ci(method="wilson")
            yield f"{among}: {hits} of {len(given)}, {hits / len(given):.2f} [{low:.2f}, {high:.2f}]"
    yield f"no recommendation: {len(rows) - len(given)} of {len(rows)}"


def assert_the_truth_is_what_outputs_depend_on(samples=16):
    """The factorised network's outputs do not change with anything else; trained ones know their classes."""
    known = made("linear", samples, 0)
    with torch.no_grad():
        elsewhere = torch.where(known.truth, known.inputs, known.inputs + 1)
        before, after = (known.model(x).gather(1, known.target[:, None]) for x in (known.inputs, elsewhere))
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert made("keyword count", samples, 0).accuracy > 0.9


def main():
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    flags.add_argument("--samples", type=int, default=32)
    flags.add_argument("--networks", nargs="*", default=list(NETWORKS))
    given = flags.parse_args()
    if given.equality_only:
        assert_the_truth_is_what_outputs_depend_on()
        print("outputs depend on the planted part and on nothing else")
        return
    rows = []

    def all_of_them():
        for name in given.networks:
            for seed in given.seeds:
                rows.append(studied(name, given.samples, seed))
                yield rows[-1]

    publish(given, all_of_them(), line)
    if not given.json:
        print("\n".join(rates(rows)))


if __name__ == "__main__":
    main()
