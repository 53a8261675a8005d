import pytest
import torch
from made_families import build
from made_hidden import CONSTANT, TRAINED, constant, rows, trained
from torch import nn
from torch.nn import functional as F

from lightning_sanity.model.hidden import reads_of


def hidden(model, inputs=None, **options):
    inputs = rows() if inputs is None else inputs
    return reads_of(model, inputs, lambda: model(inputs), **options).hidden


@pytest.mark.parametrize("case", TRAINED)
def test_a_trained_tensor_is_named_by_where_it_hangs(case):
    found = [each.name for each in hidden(trained(case)) if each.kind is None]
    assert TRAINED[case][2] in found


@pytest.mark.parametrize("kind", CONSTANT)
def test_what_is_constant_by_nature_says_why(kind):
    found = hidden(constant(kind))
    assert found
    assert {each.kind for each in found} == {kind}


@torch.library.custom_op("made_for_tests::times", mutates_args=())
def times(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """A product with a packed weight, by a kernel of which nothing is known; named as bitsandbytes names them."""
    return A @ B.to(A.dtype).T


@pytest.mark.parametrize("operation", [times, lambda a, b: a @ b.to(a.dtype).T, lambda a, b: a + b[0].to(a.dtype)])
def test_a_parameter_of_whole_numbers_is_a_weight_whatever_unpacks_it(operation):
    model = nn.Module()
    model.weight = nn.Parameter(torch.randint(-127, 127, (20, 20), dtype=torch.int8), requires_grad=False)
    inputs = rows()
    (found,) = reads_of(model, inputs, lambda: operation(inputs, model.weight)).hidden
    assert (found.name, found.kind, found.whole) == ("weight", None, True)


def test_a_parameter_of_whole_numbers_that_takes_elements_is_a_table():
    model = nn.Module()
    model.order = nn.Parameter(torch.randperm(20), requires_grad=False)
    inputs = rows()
    (found,) = reads_of(model, inputs, lambda: inputs[:, model.order]).hidden
    assert found.kind == "index table or mask"


@pytest.mark.parametrize("case", ["list", "int8 buffer", "hook"])
def test_a_declared_constant_counts_as_one(case):
    name = TRAINED[case][2]
    assert {each.name: each.kind for each in hidden(trained(case), constants=[name])}[name] == "declared"


def test_a_declaration_may_be_a_regular_expression():
    assert all(each.kind == "declared" for each in hidden(trained("list"), constants=[r"held\[\d\]\..*"]))


def test_parameters_that_a_pass_reads_are_told_from_those_it_does_not():
    model = nn.ModuleDict({"used": nn.Linear(20, 4), "spare": nn.Linear(20, 4)})
    inputs = rows()
    reads = reads_of(model, inputs, lambda: model["used"](inputs))
    assert reads.parameters == {"used.weight", "used.bias"}
    assert reads.hidden == ()


def test_what_never_reaches_the_output_is_left_out():
    beside = torch.randn(20, 3)

    class Aside(nn.Linear):
        def forward(self, x):
            self.seen = x @ beside
            return super().forward(x)

    assert hidden(Aside(20, 4)) == ()


def test_a_view_of_a_parameter_is_that_parameter():
    class Viewing(nn.Linear):
        def forward(self, x):
            return F.linear(x, self.alias[0])

    model = Viewing(20, 4)
    model.alias = [model.weight.detach()]
    assert hidden(model) == ()


def test_a_value_written_in_place_carries_what_was_written():
    written = torch.randn(12, 4)

    class Writing(nn.Linear):
        def forward(self, x):
            made = torch.cat([super().forward(x)] * 2, 1)
            made[:, 4:] = written
            return made

    assert [each.kind for each in hidden(Writing(20, 4))] == [None]


def test_rotary_angles_become_constants_by_sine_and_cosine():
    class Rotary(nn.Linear):
        def forward(self, x):
            angle = torch.arange(4) * self.frequencies
            return super().forward(x) * angle.cos()

    model = Rotary(20, 4)
    model.register_buffer("frequencies", torch.tensor([0.9, 0.31, 0.13, 0.02]))
    assert hidden(model) == ()


def test_a_tensor_that_hangs_nowhere_is_named_by_its_reader():
    class Remade(nn.Linear):
        def forward(self, x):
            return super().forward(x) @ torch.tensor(self.numbers)

    model = nn.Sequential(Remade(20, 4))
    model[0].numbers = torch.randn(4, 4).tolist()
    (found,) = hidden(model)
    assert (found.name, found.shape, found.kind) == ("a tensor that '0' reads", (4, 4), None)


def test_hooks_are_gone_after_a_pass_that_failed():
    model = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(RuntimeError):
        hidden(model)
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize("name", ["maxvit_t", "swin_t", "swin_v2_t", "vit_b_32", "convnext_tiny", "shufflenet_v2_x0_5"])
def test_published_architectures_raise_no_false_alarm(name):
    model, side = build(name, num_classes=4)
    found = hidden(model, torch.rand(1, 3, side, side))
    assert [each.name for each in found if each.kind is None] == []


def test_transformers_of_torch_raise_no_false_alarm():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)

        def forward(self, x):
            causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.both(x, x, tgt_mask=causal, tgt_is_causal=True).mean(1)

    assert all(each.kind is not None for each in hidden(Masked().eval(), torch.randn(3, 5, 4)))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_rows_that_a_transformer_packs_are_no_obstacle():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
            self.embedding, self.encoder = nn.Embedding(30, 16, padding_idx=0), nn.TransformerEncoder(layer, 2)

        def forward(self, ids):
            return self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0).sum(1)

    ids = torch.tensor([[3, 5, 7, 0, 0], [4, 9, 0, 0, 0], [8, 2, 6, 1, 0]])
    model = Padded().eval().requires_grad_(False)
    with torch.no_grad():
        found = reads_of(model, ids, lambda: model(ids))
    assert found.hidden == ()


def test_tensors_that_share_one_memory_are_told_apart():
    class Sharing(nn.Linear):
        def forward(self, x):
            return super().forward(x) @ self.mixing + self.mask[:4]

    model, memory = Sharing(20, 4), torch.cat([torch.randn(100), torch.ones(4), torch.zeros(4)])
    model.weight = nn.Parameter(memory[:80].view(4, 20))
    model.register_buffer("mask", memory[100:108])
    model.register_buffer("mixing", memory[80:96].view(4, 4))
    assert {each.name: each.kind for each in hidden(model)} == {"mixing": None, "mask": "mask"}


def test_what_a_pass_makes_itself_is_nothing_hidden():
    class Making(nn.Linear):
        def forward(self, x):
            ramp = torch.arange(4.0).mul_(torch.linspace(0.5, 1, 4))
            return super().forward(x) * ramp + torch.eye(4)[0] + torch.full((4,), 2.0)

    assert hidden(Making(20, 4)) == ()
