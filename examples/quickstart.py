"""A Trainer with the callback: train a small CNN on real digits and read the verdicts that it prints."""

import lightning as L
from torch.utils.data import DataLoader

from lightning_sanity import SaliencySanityCallback
from lightning_sanity.cli.demo import DigitsClassifier, digits


def main(root="quickstart", epochs=4):
    training, validation = digits()
    callback = SaliencySanityCallback(methods=["gradient", "gradcam", "guided_backprop"])
    trainer = L.Trainer(max_epochs=epochs, callbacks=[callback], default_root_dir=root, accelerator="cpu")
    trainer.fit(DigitsClassifier(), DataLoader(training, 64, shuffle=True), DataLoader(validation, 256))
    return callback.result


if __name__ == "__main__":
    main()
