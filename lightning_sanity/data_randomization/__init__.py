"""The data randomization test: do maps change when the model was trained on random labels?

drt.py            the front door: models of both kinds in, result out
comparison.py     explains all models with a method and compares their maps
learned_labels.py did every model learn the labels it was given?
experiment.py     trains both kinds of models and compares them
datamodule.py     RandomLabelDataModule: any data, with labels that say nothing about the inputs
random_labels.py  which label each sample gets instead of its own
label_access.py   where a sample carries its label, and how it is replaced there
loaders.py        the same loader over another data set; samplers that know the labels
"""

from lightning_sanity.data_randomization.datamodule import RandomLabelDataModule
from lightning_sanity.data_randomization.drt import data_randomization_test
from lightning_sanity.data_randomization.experiment import random_label_experiment
from lightning_sanity.data_randomization.learned_labels import Memorization, memorization

__all__ = [
    "Memorization",
    "RandomLabelDataModule",
    "data_randomization_test",
    "memorization",
    "random_label_experiment",
]
