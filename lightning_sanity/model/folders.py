"""Folders in which other tools keep weights: which file holds which tensor, or how to make one file of them."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_sanity.resources.files import regular
from lightning_sanity.resources.quoting import listed

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_LARGEST = 1 << 24  # bytes of an index
_MOST = 1 << 12  # files
_OF_DEEPSPEED = "*_model_states.pt"


def indexed(folder: Path) -> dict[str, str] | None:
    """The file of every tensor, as transformers and DeepSpeed's ``zero_to_fp32.py`` write down for large models.

    Args:
        folder: Of the model.

    Returns:
        The name of a file in the folder by the name of a tensor; None if there is no such index.

    Raises:
        ValueError: If the index is damaged, or names a file that lies elsewhere.
        OSError: If it cannot be read.
    """
    found = [folder / name for name in _INDEXES if (folder / name).is_file()]
    if not found:
        return None
    try:
        files = json.loads(regular(found[0], _LARGEST).read_bytes())["weight_map"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"its '{found[0].name}' holds no 'weight_map'") from error
    if not isinstance(files, dict) or not files or len(set(map(str, files.values()))) > _MOST:
        raise ValueError(f"the 'weight_map' in its '{found[0].name}' is none")
    for file in files.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ValueError(f"its '{found[0].name}' names a file that is not in the folder")
    return files


def way_out(folder: Path) -> str:
    """What to do with a folder that is not read: a sentence for whoever gave it."""
    inside = any(folder.glob(_OF_DEEPSPEED))
    if inside or (folder / "zero_to_fp32.py").is_file() or any(folder.glob(f"*/{_OF_DEEPSPEED}")):
        given = folder.resolve().parent if inside else folder
        return (
            "is a folder of DeepSpeed: make one file of it with Lightning's "
            f"convert_zero_checkpoint_to_fp32_state_dict({str(given)!r}, 'one.ckpt'), which is in "
            "lightning.pytorch.utilities.deepspeed, and give that file"
        )
    files = sorted(path.name for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())
    if any(name.startswith("shard-") for name in files):
        return "is a folder of pieces: save it with HuggingFaceStorageWriter(enable_consolidation=True)"
    if files:
        return f"is a folder: name the file in it that holds the weights ({listed(files)})"
    return (
        "is a folder, of shards perhaps: make one file of it with "
        f"`python -m lightning.fabric.utilities.consolidate_checkpoint {folder}`"
    )
