"""Which method to show for a small network on digits, by group, with the page and the file for the gate.

python examples/choosing.py
"""

from pathlib import Path

from lightning_sanity import choose_methods
from lightning_sanity.cli import demo

CANDIDATES = ("gradient", "gradcam", "integrated_gradients", "input_x_gradient", "guided_backprop")


def main(out=Path("choosing"), *, candidates=CANDIDATES, epochs=6, samples=32, trials=10):
    training, validation = demo.digits()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    model, _ = demo.train(training, validation, epochs=epochs, seed=0, **quiet)
    images, labels = (tensor[:samples] for tensor in validation.tensors)
    # Round digits and others: a method that failed on one of the two would be named.
    groups = ["round" if label in (0, 6, 8, 9) else "other" for label in labels.tolist()]
    choice = choose_methods(model, images, labels=labels, candidates=candidates, groups=groups, trials=trials)
    print(choice)
    choice.to_html(out / "choice.html")
    choice.to_json(out / "choice.json")  # lightning-sanity gate ... --choice choosing/choice.json --shown METHOD
    return choice


if __name__ == "__main__":
    main()
