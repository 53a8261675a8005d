"""YAML of strangers: plain values, of bounded depth and size however often a short file names one part of it."""

from __future__ import annotations

from typing import Any

from lightning_sanity.resources.files import StrPath, regular


def read_yaml(path: StrPath, *, largest: int, deepest: int, strict: bool = False) -> Any:
    """What a YAML file holds, without tags of its own.

    Args:
        path: Of the file.
        largest: Bytes that it may have; the parser reads about a hundred thousand in a second.
        deepest: Levels that it may nest.
        strict: Whether it may neither hold a key twice, nor name a part so that it stands in several places. Else
            every place counts, and all of them together may be no more than the file might have bytes.

    Raises:
        ValueError: If it is not such a file.
        OSError: If it cannot be read.
    """
    import yaml  # type: ignore[import-untyped,unused-ignore]  # comes with lightning

    try:
        text = regular(path, largest).read_bytes().decode("utf-8-sig")
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if strict and (isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None)):
                raise ValueError("aliases are not read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > deepest:
                raise ValueError(f"nested more than {deepest} deep")
        root = yaml.compose(text, yaml.SafeLoader)
        _size(root, {}, largest, strict)
        return None if root is None else yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error


def _size(node: Any, known: dict[int, int | None], most: int, strict: bool) -> int:
    """Values at and below a node, every place counted; its own place is None while it is looked at."""
    import yaml

    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError("a part holds itself")
        return size
    known[id(node)] = None
    below = getattr(node, "value", None)
    size, keys = 1, set()
    for each in below if isinstance(below, list) else ():
        parts = each if isinstance(each, tuple) else (each,)
        size += sum(_size(part, known, most, strict) for part in parts)
        if strict and isinstance(node, yaml.MappingNode):
            key = parts[0]
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError("a key is no word")
            if key.value in keys:
                raise ValueError(f"the key {key.value[:30]!r} stands there twice")
            keys.add(key.value)
    if size > most:
        raise ValueError(f"its parts stand in more than {most} places")
    known[id(node)] = size
    return size
