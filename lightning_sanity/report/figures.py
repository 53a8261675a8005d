"""Pictures of a result as matplotlib figures.

Every function takes a `SanityResult` and returns a `Figure` that belongs to nobody else: pyplot, which keeps figures
alive and picks a window system, is never imported, and no ``rcParams`` are changed.
"""

from lightning_sanity.report.curves import curves, output_change, sensitivity
from lightning_sanity.report.maps import every_sample, maps
from lightning_sanity.report.verdicts import history, samples, verdicts

__all__ = ["curves", "every_sample", "history", "maps", "output_change", "samples", "sensitivity", "verdicts"]
