"""Every attribution method on one small CNN trained on real digits: a table of verdicts, as text and as a picture.

python examples/every_method.py --out every_method [--trials 5] [--samples 16] [--methods gradient gradcam ...]
"""

import argparse
from pathlib import Path

from rich.progress import Progress

from lightning_sanity import attribution, parameter_randomization_test
from lightning_sanity.cli import demo
from lightning_sanity.explanation.probe import from_dataset
from lightning_sanity.report import figures


def markdown(result):
    """One row per method: verdict, index with its interval, the measure that decided, or why there is none."""
    lines = ["| method | verdict | PSI [95 %] | decided by |", "|---|---|---|---|"]
    for name, verdict in result.verdicts.items():
        defined = verdict.psi == verdict.psi
        psi = f"{verdict.psi:.2f} [{verdict.psi_low:.2f}, {verdict.psi_high:.2f}]" if defined else "undefined"
        note = verdict.measure if defined else verdict.reason.split(":")[0]
        shown = name if verdict.gated else f"{name} (control)"
        lines.append(f"| {shown} | {verdict.outcome.value} | {psi} | {note} |")
    return "\n".join(lines)


def main(out="every_method", methods=None, trials=5, samples=16, epochs=8, seed=0):
    training, validation = demo.digits()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    model, _ = demo.train(training, validation, epochs=epochs, seed=seed, **quiet)
    with Progress(transient=True) as bar:
        task = bar.add_task("testing", total=None)
        result = parameter_randomization_test(
            model,
            from_dataset(validation, samples, seed=seed).inputs,
            methods=list(methods or attribution.available()),
            trials=trials,
            seed=seed,
            progress=lambda done, total, label: bar.update(task, completed=done, total=total, description=label),
        )
    folder = Path(out)
    result.to_json(folder / "result.json")
    figures.verdicts(result).savefig(folder / "every_method.png", dpi=100)
    (folder / "every_method.md").write_text(markdown(result) + "\n", encoding="utf-8")
    print(markdown(result))
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="every_method")
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--samples", type=int, default=16)
    main(**vars(parser.parse_args()))
