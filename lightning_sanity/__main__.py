"""``python -m lightning_sanity``."""

from lightning_sanity.cli import entry_point

if __name__ == "__main__":
    entry_point()
