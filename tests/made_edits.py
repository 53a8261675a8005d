"""Every edit of one place in a result, as plain data: other values of its kind, and values of other kinds."""

import copy

import torch

from lightning_sanity.result import file as result_file

DELETED = object()


def paths(data, path=()):
    """Every place in a result, tensors as a whole."""
    if path:
        yield path
    if isinstance(data, dict) and "zlib" not in data:
        for key in data:
            yield from paths(data[key], (*path, key))
    elif isinstance(data, list):
        for index in range(len(data)):
            yield from paths(data[index], (*path, index))


def at(data, path):
    for key in path:
        data = data[key]
    return data


def edited(data, path, value):
    holder = at(data, path[:-1])
    if value is DELETED:
        del holder[path[-1]]
    else:
        holder[path[-1]] = copy.deepcopy(value)
    return data


def alternatives(value):
    """What a place may be changed to: other values of its kind, and of other kinds."""
    yield DELETED
    yield None
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, str):
        yield from ("", "PASS", "FAIL", "INCONCLUSIVE", value + "x", 1)
    elif isinstance(value, (int, float)) or value is None:
        yield from (-1, 0, 0.05, 0.5, 0.7, 1, 1.0, 2, 1e9, "1", True)
    elif isinstance(value, dict) and "zlib" in value:
        shape = value["shape"]
        for tensor in (torch.zeros(shape), torch.ones(shape), torch.full(shape, torch.nan), -torch.ones(shape)):
            yield result_file.encode(tensor)
        yield result_file.encode(torch.zeros([*shape, 1]))
        yield {**value, "shape": [*reversed(shape)]}
    elif isinstance(value, list):
        yield from ([], value[:-1], value[::-1], [*value, *value[:1]], {}, "x")
    else:
        yield from ({}, [], "x")


def single_edits(data):
    """Each place with each value that it may be changed to."""
    return [(path, value) for path in paths(data) for value in alternatives(at(data, path))]
