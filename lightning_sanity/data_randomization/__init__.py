"""The data randomization test: do maps change when the model was trained on random labels?

drt.py            the front door: models of both kinds in, result out
comparison.py     explains all models with a method and compares their maps
groups.py         the models of both kinds, and whether they can be told apart
distinct.py       copies of one model count as one; all must be of one architecture
learned_labels.py did every model learn the labels it was given, and were they random?
association.py    do the labels that a model was given go together with the true ones?
tallies.py        how well predictions fit labels of any kind, as sums over batches
evidence.py       measured on the data module that models were trained with
logged.py         as trainings wrote it down themselves
experiment.py     trains both kinds of models and compares them
recorder.py       the record of each of its trainings
fingerprint.py    what an experiment trains: whose folder is it?
idle_trainer.py   a Trainer that trains nothing, for data and hooks that ask for one
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
