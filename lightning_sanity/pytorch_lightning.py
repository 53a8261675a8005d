"""The callback for Trainers of the ``pytorch_lightning`` package, which is another copy of ``lightning.pytorch``.

    from lightning_sanity.pytorch_lightning import SaliencySanityCallback

A Trainer of either package accepts either class in a list of callbacks; this one is a callback of both packages.
"""

from __future__ import annotations

import pytorch_lightning as pl

from lightning_sanity.callback import sanity_callback as callback

__all__ = ["SaliencySanityCallback"]


class SaliencySanityCallback(callback.SaliencySanityCallback, pl.Callback):  # type: ignore[misc]
    """As ``lightning_sanity.SaliencySanityCallback``."""
