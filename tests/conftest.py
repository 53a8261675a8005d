"""Shared material: a network trained on real digits, and torch on a fixed number of threads."""

import os

import pytest
import torch

from lightning_sanity.cli import demo

torch.set_num_threads(1)  # the networks are small, and the workers of pytest-xdist share the cores
os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start


@pytest.fixture(scope="session")
def digits_network():
    """A trained CNN in eval mode, 397 validation images (N, 1, 16, 16) and their labels."""
    training, validation = demo.digits()
    model, _ = demo.train(
        training,
        validation,
        epochs=6,
        seed=0,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    return model.eval(), *validation.tensors


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def batch():
    """Three colour images (3, 3, 12, 12) and their classes."""
    return torch.randn(3, 3, 12, 12), torch.tensor([0, 1, 2])
