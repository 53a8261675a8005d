"""Checkpoints of many makers give the digest of their model; nothing in one runs, hangs or grows."""

import argparse
import enum
import functools
import io
import json
import pathlib
import pickle
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from lightning_sanity.model import pickled
from lightning_sanity.model.checkpoint import digests, load
from lightning_sanity.model.clone import weights_digest
from lightning_sanity.model.digest import state_digest

# ----------------------------------------------------------------------------------------------------- honest makers


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.net = inner


class Colour(enum.Enum):
    RED = 1


class Settings(dict):
    """Like the containers of configuration libraries: a dictionary with attributes, a state and a parent."""

    def __init__(self, **values):
        super().__init__(values)
        self.parent = self

    def __reduce__(self):
        return (Settings, (), {"content": dict(self), "parent": self})


def lightning(**hyper_parameters):
    optimizer = torch.optim.Adam(model().parameters())
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": model().state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters,
    }


def saved(held, path, **arguments):
    torch.save(held, path, **arguments)
    return path


def as_safetensors(state, path):
    kinds = {torch.float32: "F32", torch.int64: "I64"}
    head, raw = {"__metadata__": {"format": "pt"}}, b""
    for name, tensor in state.items():
        data = tensor.numpy().tobytes()
        offsets = [len(raw), len(raw) + len(data)]
        head[name] = {"dtype": kinds[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        raw += data
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw)
    return path


def configured(values):
    return pytest.importorskip("omegaconf").OmegaConf.create({"base": 1e-3, **values})


MAKERS = {
    "a state_dict": lambda: model().state_dict(),
    "parameters": lambda: OrderedDict(model().named_parameters()) | OrderedDict(model().named_buffers()),
    "lightning": lightning,
    "lightning, a module": lambda: lightning(net=model(1), loss=nn.CrossEntropyLoss()),
    "lightning, a partial": lambda: lightning(optimizer=functools.partial(torch.optim.Adam, lr=1e-3)),
    "lightning, an enumeration": lambda: lightning(colour=Colour.RED),
    "lightning, a path": lambda: lightning(data=pathlib.Path("data")),
    "lightning, a configuration": lambda: lightning(config=Settings(width=3, inner=Settings(depth=2))),
    "lightning, functions and classes": lambda: lightning(act=torch.relu, kind=nn.ReLU, table=Colour),
    "lightning, a generator and numbers": lambda: lightning(scale=complex(1, 2), tags={"a", "b"}, ids=frozenset([1])),
    "under model": lambda: {"model": model().state_dict(), "args": Settings(lr=1)},
    "under module": lambda: {"module": model().state_dict(), "ds_config": {"zero": 3}, "dp_world_size": 1},
    "under model_state_dict": lambda: {"model_state_dict": model().state_dict(), "loss": 0.5},
    "a wrapper": lambda: {"state_dict": Wrapper(model()).state_dict()},
    "compiled": lambda: {f"_orig_mod.{name}": value for name, value in model().state_dict().items()},
    "an average beside": lambda: lightning() | {"averaging_state": model(1).state_dict()},
    "an average as timm keeps it": lambda: {
        "epoch": 3,
        "arch": "net",
        "state_dict": model().state_dict(),
        "state_dict_ema": model(1).state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "amp_scaler": {"scale": 65536.0},
        "version": 2,
    },
    "lightning, hydra": lambda: lightning(cfg=configured({"net": {"_target_": "torch.nn.ReLU"}, "lr": "${base}"})),
    "compiled in lightning": lambda: {f"net._orig_mod.{name}": value for name, value in model().state_dict().items()},
}


@pytest.mark.parametrize("writing", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_a_checkpoint_has_the_digest_of_its_model(maker, writing, tmp_path):
    path = saved(MAKERS[maker](), tmp_path / "best.ckpt", **writing)
    assert weights_digest(model()) in digests(path)
    assert weights_digest(model(1)) not in digests(path)


def test_a_safetensors_file_has_the_digest_of_its_model(tmp_path):
    assert weights_digest(model()) in digests(as_safetensors(model().state_dict(), tmp_path / "m.safetensors"))


STATES = {
    "types": {
        str(kind): torch.arange(4).to(kind)
        for kind in (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.bool, torch.int16,
                     torch.int32, torch.complex64, torch.complex128)
    },
    "new types": {str(kind): torch.ones(3).to(kind) for kind in (torch.float8_e4m3fn, torch.uint16, torch.uint64)},
    "views": {"t": torch.arange(12.0).reshape(3, 4).t(), "part": torch.arange(10)[3:7]},
    "shared": dict.fromkeys("ab", torch.arange(6.0)),
    "expanded": {"mask": torch.ones(1).expand(5, 5)},
    "odd shapes": {"none": torch.empty(0, 3), "scalar": torch.tensor(3.0), "long": torch.zeros(1, 1, 1, 1, 1, 2)},
    "extra state": {
        "w": torch.ones(2),
        "_extra_state": {"a": [1, -2.5, None, True, 1 << 80], "b": ("x", b"y", {1, 2}), 3: torch.float16,
                         "size": torch.Size([2, 3]), "t": torch.arange(3), "z": 1j},
    },
    "names": {"ünïcode \U0001f600": torch.ones(1), "": torch.ones(1)},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "old"),
    [(name, old) for name in STATES for old in (False, True) if not (old and name == "new types")],  # old has no such
)
def test_reading_equals_what_torch_reads(name, old, tmp_path):
    path = saved(STATES[name], tmp_path / "state.pt", _use_new_zipfile_serialization=not old)
    found, expected = load(path), torch.load(path, weights_only=True)
    assert state_digest(found) == state_digest(expected) == state_digest(STATES[name])
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert (found[key].dtype, found[key].shape) == (value.dtype, value.shape)
            assert found[key].tolist() == value.tolist()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # torch will drop such tensors some day
@pytest.mark.parametrize("change", [{}, {"scale": 0.2}, {"zero_point": 4}, {"dtype": torch.quint8}], ids=str)
def test_a_quantised_tensor_counts_with_its_scale(change, tmp_path):
    def quantised(**changes):
        return torch.quantize_per_tensor(
            torch.tensor([0.0, 1.0]), **{"scale": 0.1, "zero_point": 3, "dtype": torch.qint8, **changes}
        )

    path = saved({"q": quantised()}, tmp_path / "q.pt")
    assert (digests(path)[0] == state_digest({"q": quantised(**change)})) == (not change)


def test_packed_parameters_of_quantised_modules_count(tmp_path):
    def packed(seed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}).state_dict()

    path = saved(packed(0), tmp_path / "q.pt")
    assert digests(path)[0] == state_digest(packed(0)) != state_digest(packed(1))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_per_channel_quantised_tensor_is_read(tmp_path):
    scales, zeros = torch.tensor([0.1, 0.2]).double(), torch.tensor([0, 1])
    held = {"q": torch.quantize_per_channel(torch.randn(2, 3), scales, zeros, 0, torch.qint8)}
    assert digests(saved(held, tmp_path / "q.pt"))[0] == state_digest(held)


def test_a_pruned_model_counts_as_its_products(tmp_path):
    pruned = model()
    torch.nn.utils.prune.l1_unstructured(pruned[3], "weight", 0.5)
    path = saved(pruned.state_dict(), tmp_path / "p.pt")
    torch.nn.utils.prune.remove(pruned[3], "weight")
    assert digests(path)[0] == weights_digest(pruned)


def test_weights_that_hold_an_object_cannot_be_compared(tmp_path):
    path = saved({"w": torch.ones(1), "_extra_state": Colour.RED}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"cannot be compared: its weights hold '_extra_state' \(.*(Colour|getattr)"):
        digests(path)


# ---------------------------------------------------------------------------------------------------- hostile makers


class Runs:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments, state=None):
        self.made = (function, arguments, *([] if state is None else [state]))

    def __reduce__(self):
        return self.made


def zipped(path, raw, records=(), *, name="archive/data.pkl", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, raw)
        for other, data in records:
            file.writestr(other, data)
    return path


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


OPEN = b"cbuiltins\nopen\n"
CANARY = text("canary")


def arguments(*values):
    return b"(" + b"".join(values) + b"t"


PROGRAMS = {
    "reduce": program(OPEN, arguments(CANARY, text("w")), b"R"),
    "reduce twice": program(
        b"cbuiltins\ngetattr\n", arguments(b"cos\nx\n", text("system")), b"R", arguments(CANARY), b"R"
    ),
    "system": program(b"cos\nsystem\n", arguments(text("touch canary")), b"R"),
    "instance": program(b"(", text("touch canary"), b"ios\nsystem\n"),
    "object": program(b"(cos\nsystem\n", text("touch canary"), b"o"),
    "new": program(b"cpathlib\nPath\n", arguments(CANARY), b"\x81"),
    "new with keywords": b"\x80\x04" + b"cbuiltins\nopen\n" + arguments(CANARY, text("w")) + b"}\x92.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93" + arguments(text("touch canary")) + b"R.",
    "set state": program(b"clogging\nHandler\n)\x81}", text("level"), b"K\x01sb"),
    "state of a function": program(OPEN, b"}", text("__code__"), b"K\x01sb"),
    "state with a class": program(b"}", text("a"), b"K\x01s}", text("__class__"), b"cos\nsystem\nsb"),
    "append to an object": program(OPEN, b"(K\x01K\x02e"),
    "items of an object": program(OPEN, b"(K\x01K\x02u"),
    "add to an object": b"\x80\x04cbuiltins\nopen\n(K\x01K\x02\x90.",
    "an extension": program(b"\x82\x01"),
    "an import": program(b"cantigravity\ngeohash\n)R"),
    "a module by its parts": program(b"cxml.etree\nElementTree.parse\n", arguments(CANARY), b"R"),
    "apply": program(b"cbuiltins\neval\n", arguments(text("open('canary','w')")), b"R"),
    "map in a list": program(b"cbuiltins\nmap\n", arguments(OPEN, b"]", CANARY, b"a"), b"R"),
    "weights under a bomb": program(b"}", text("state_dict"), OPEN, arguments(CANARY, text("w")), b"Rs"),
    "a bomb as key": program(b"}", OPEN, arguments(CANARY, text("w")), b"RK\x01s"),
    "a bomb as a tensor's arguments": program(
        b"}", text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n", OPEN, arguments(CANARY, text("w")), b"RRs"
    ),
    "a bomb as a storage": program(
        b"}", text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n(", OPEN, arguments(CANARY, text("w")), b"RQ",
        b"K\x00K\x01\x85K\x01\x85\x89}tRs",
    ),
    "a tensor class": program(
        b"}", text("w"), b"ctorch._tensor\n_rebuild_from_type_v2\n(", OPEN, b"cos\nsystem\n", arguments(CANARY), b"}tRs"
    ),
    "a rebuilt script object": program(b"ctorch.jit\n_load\n", arguments(CANARY), b"R"),
    "an empty stack": program(b"R"),
    "a mark as a value": program(b"((t"),
    "a missing memory": program(b"h\x05"),
    "no end": b"\x80\x02" + b"N" * 10,
    "text": b"state_dict",
    "nothing": b"",
}  # fmt: skip


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """An empty current folder, in which nothing may appear, and nothing may be imported meanwhile."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    modules = set(sys.modules)
    yield tmp_path / "in"
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    assert "antigravity" not in set(sys.modules) - modules


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_nothing_in_a_hostile_pickle_runs(name, old, watched):
    path = watched / "bad.ckpt"
    if old:
        heads = [pickle.dumps(head, protocol=2) for head in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(heads) + PROGRAMS[name] + pickle.dumps([], protocol=2))
    else:
        zipped(path, PROGRAMS[name])
    with pytest.raises(ValueError, match=r"bad\.ckpt"):
        digests(path)


@pytest.mark.parametrize("function", [exec, eval, open, __import__, getattr, type])
def test_what_a_class_pickles_as_a_call_is_not_called(function, watched):
    bomb = Runs(function, "open('canary', 'w')", state={"a": 1})
    path = saved({"state_dict": model().state_dict(), "hyper_parameters": {"x": [bomb], "y": bomb}}, watched / "b.ckpt")
    assert weights_digest(model()) in digests(path)


# ------------------------------------------------------------------------------------- what would hang, or take memory


def tensor(*, storage="FloatStorage", key="0", count=4, offset=0, size=(4,), stride=(1,)):
    """A state_dict of one tensor, as a pickle that says of it whatever is asked."""

    def number(value):
        raw = pickle.dumps(value, protocol=2)
        return raw[2:-1]

    return program(
        b"}", text("w"), b"ctorch._utils\n_rebuild_tensor_v2\n((", text("storage"), f"ctorch\n{storage}\n".encode(),
        text(key), text("cpu"), number(count), b"tQ", number(offset), number(size), number(stride), b"\x89}tRs",
    )  # fmt: skip


HELD = [("archive/data/0", bytes(16))]


def test_the_maker_of_hostile_tensors_makes_honest_ones(tmp_path):
    assert torch.equal(load(zipped(tmp_path / "w.pt", tensor(), HELD))["w"], torch.zeros(4))


CLAIMS = {
    "more numbers": {"size": (5,)},
    "a huge tensor": {"count": 1 << 60, "size": (1 << 60,)},
    "a huge shape over one number": {"size": (1 << 20, 1 << 20), "stride": (0, 0)},
    "a shape beyond every integer": {"size": (1 << 400, 1 << 400), "stride": (0, 0)},
    "a stride past the end": {"size": (2,), "stride": (4,)},
    "a negative stride": {"stride": (-1,)},
    "a negative size": {"size": (-4,)},
    "a negative offset": {"offset": -1},
    "an offset past the end": {"offset": 1},
    "more strides than sizes": {"stride": (1, 1)},
    "a size that is text": {"size": ("4",)},
    "a hundred dimensions": {"size": (1,) * 100, "stride": (1,) * 100},
    "no such storage": {"key": "1"},
    "a storage by a path": {"key": "../../etc/passwd"},
    "an unknown type": {"storage": "FileStorage"},
    "a class as type": {"storage": "nn.Module"},
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_tensor_is_no_larger_than_what_the_file_holds(claim, tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load(zipped(tmp_path / "w.pt", tensor(**CLAIMS[claim]), HELD))


def test_tensors_that_all_look_at_the_same_numbers_are_bounded(tmp_path):
    state = {f"w{index}": torch.ones(1).expand(1 << 24) for index in range(40)}
    with pytest.raises(ValueError, match="4 times the size of the file"):
        load(saved(state, tmp_path / "w.pt"))


def long_pickles():
    nested = b"]" * 200_000 + b"a" * 199_999
    doubled = b"]" + b"2" + b"a"  # a list that holds itself
    laughs = b"]" + b"".join(b"q" + bytes([i]) + b"](h" + bytes([i]) + b"h" + bytes([i]) + b"e" for i in range(100))
    weights = tensor()[2:-1]
    yield "nested lists", program(nested)
    yield "a list in itself", program(weights, text("x"), doubled, b"s")
    yield "doublings", program(weights, text("x"), laughs, b"s")
    yield "endless operations", program(b"N0" * 1_500_000, b"N")
    yield (
        "colliding keys",
        program(b"}(", *(pickle.dumps(k * ((1 << 61) - 1), 2)[2:-1] + b"N" for k in range(60_000)), b"u"),
    )
    yield "a text of four gigabytes", b"\x80\x02X\xff\xff\xff\xffabc."
    yield "a text of exabytes", b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc."
    yield "a number of a million digits", program(b"\x8b" + struct.pack("<i", 500_000) + b"\x7f" * 500_000)
    yield "a number in digits", program(b"I" + b"9" * 1_000_000 + b"\n")
    yield "a deep state", program(weights, text("x"), nested[:400_000], b"s")


LONG = dict(long_pickles())


@pytest.mark.parametrize("name", LONG)
def test_no_pickle_hangs_or_takes_memory(name, tmp_path):
    path = zipped(tmp_path / "w.pt", LONG[name], HELD)
    began = time.process_time()
    with pytest.raises(ValueError, match=r"w\.pt"):
        digests(path)
    assert time.process_time() - began < 5


def test_memory_stays_in_the_order_of_the_operations(monkeypatch):
    monkeypatch.setattr(pickled, "MOST_OPERATIONS", 50_000)
    tracemalloc.start()
    with pytest.raises(pickled.UnreadableError, match="operations"):
        pickled.read(io.BytesIO(b"\x80\x04" + b"]\x94" * 50_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * pickled.MOST_OPERATIONS


def listed(path, **changes):
    """An archive whose list of records says something else of the storage than what is there."""
    zipped(path, tensor(), HELD)
    raw = bytearray(path.read_bytes())
    entry = raw.rfind(b"PK\1\2")
    for (at, kind), value in changes.values():
        struct.pack_into(kind, raw, entry + at, value)
    path.write_bytes(raw)
    return path


METHOD, PACKED, WHOLE, LOCAL = (10, "<H"), (20, "<I"), (24, "<I"), (42, "<I")


@pytest.mark.parametrize(
    "changes",
    [
        {"size": (WHOLE, 1 << 30), "packed": (PACKED, 1 << 30)},
        {"size": (WHOLE, 1 << 30)},
        {"method": (METHOD, 8)},
        {"place": (LOCAL, 1)},
        {"place": (LOCAL, (1 << 32) - 2)},
    ],
    ids=["larger than the file", "unpacking to a gigabyte", "compressed", "elsewhere", "outside"],
)
def test_a_record_is_where_and_as_large_as_it_is(changes, tmp_path):
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load(listed(tmp_path / "w.pt", **changes))


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    path = zipped(tmp_path / "w.pt", bytes(1 << 24), method=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="is compressed or encrypted"):
        load(path)


def test_two_pickles_in_an_archive_are_one_too_many(tmp_path):
    with pytest.raises(ValueError, match=r"2 records 'data\.pkl'"):
        load(zipped(tmp_path / "w.pt", tensor(), [("other/data.pkl", tensor()), *HELD]))


@pytest.mark.parametrize(
    "head",
    [
        b"[" * 100_000, b"{" + b'"a":[' * 100_000, b"{}", b"[]", b'{"w": 1}', b'{"w": {"dtype": "F32"}}',
        b'{"w": {"dtype": "F32", "shape": [1e9], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"w": {"dtype": "PICKLE", "shape": [1], "data_offsets": [0, 4]}}',
    ],
)  # fmt: skip
def test_a_damaged_safetensors_file_is_refused(head, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_that_is_cut_or_changed_anywhere_is_read_or_refused(old, tmp_path):
    path = saved(model().state_dict(), tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    raw = path.read_bytes()
    draw = torch.Generator().manual_seed(0)
    for _ in range(150):
        at, byte = (int(torch.randint(limit, (), generator=draw)) for limit in (len(raw), 256))
        for changed in (raw[:at], raw[:at] + bytes([byte]) + raw[at + 1 :]):
            path.write_bytes(changed)
            try:
                assert digests(path)
            except ValueError as error:
                assert "w.pt" in str(error)  # noqa: PT017  # anything else is the failure
