"""What an operation does with what it reads: does it rectify, does it mix channels by a weight?

What a parameter is follows from the operation that reads it, not from its shape: the head of a single logit has the
shape ``(1, C)`` and mixes all channels, a layer scale of shape ``(C, 1, 1)`` or ``(C, H, W)`` mixes none.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from torch import Tensor

_RECTIFIER = re.compile(r"aten\.(relu|relu6|hardtanh|threshold|clamp_min|clamp)_?\.")
_LOOKUPS = ("embedding", "embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
_SHIFTS: dict[str, tuple[int | str, ...]] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot", "matmul", "_trilinear", "_sparse_mm", "_grouped_mm"), ()),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm", "addmv", "addr", "_addmm_activation"), (0,)),
    **dict.fromkeys(("linear", "convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution"), (2,)),
    **dict.fromkeys(("cudnn_convolution", "cudnn_convolution_transpose"), ()),
    **dict.fromkeys(("miopen_convolution", "miopen_depthwise_convolution", "mkldnn_linear"), (2,)),
    **dict.fromkeys(("_conv_depthwise2d", "conv_depthwise3d", "slow_conv_transpose2d", "_slow_conv2d_forward"), (3,)),
    **dict.fromkeys((*_LOOKUPS, "index", "index_select", "gather", "take", "cdist", "_cdist_forward"), ()),
    **dict.fromkeys(("_scaled_dot_product_flash_attention", "_flash_attention_forward"), ()),
    "_scaled_dot_product_flash_attention_for_cpu": ("attn_mask",),
    **dict.fromkeys(("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"), (3,)),
    "_efficient_attention_forward": (3,),
}
"""Operations that mix channels, with those of their operands that are only added."""
_RECURRENT = ("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")
_PAIRWISE = ("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "pow", "addcmul", "where", "lerp", "logaddexp")


def mixes(operation: Any, place: int | str, weight: Tensor, enlarges: bool) -> bool:
    """Whether an operation mixes channels by one of its operands; otherwise it scales, shifts, normalises or joins.

    Args:
        operation: As the dispatcher names it.
        place: Of the operand among the arguments: a position or a keyword.
        weight: The operand. Of operations that are not PyTorch's own nothing is known, so its shape decides.
        enlarges: Whether the result has more elements than what is mixed: a product of every channel with several
            weights, of which a sum is taken next.
    """
    namespace, _, name = str(operation.overloadpacket).partition(".")
    if namespace != "aten":
        return sum(side > 1 for side in weight.shape) >= 2
    name = name.rstrip("_")
    if name in _RECURRENT:
        return weight.ndim > 1
    if name in _SHIFTS:
        return place not in _SHIFTS[name]
    return name in _PAIRWISE and enlarges


def looks_up(operation: Any) -> bool:
    """Whether an operation takes rows out of a table."""
    return str(operation.overloadpacket).partition(".")[2] in _LOOKUPS


@cache
def is_view(operation: Any) -> bool:
    """Whether an operation only looks at the memory of what it reads."""
    aliases = [returned.alias_info for returned in operation._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def changed(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    given = [args[place] if place < len(args) else kwargs.get(name) for place, name in _written(operation)]
    return [
        tensor
        for value in given
        for tensor in (value if isinstance(value, (list, tuple)) else [value])
        if isinstance(tensor, Tensor)
    ]


@cache
def _written(operation: Any) -> tuple[tuple[int, str], ...]:
    """Places and names of the arguments that an operation writes to."""
    return tuple(
        (place, argument.name)
        for place, argument in enumerate(operation._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def rectifies(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is ReLU or a bounded ReLU, under any of its names."""
    match = _RECTIFIER.match(str(operation) + ".")
    if match is None:
        return False
    kind, positional = match.group(1), args[1:]
    if kind in ("relu", "relu6"):
        return True
    low = positional[0] if positional else kwargs.get("min", kwargs.get("min_val", kwargs.get("threshold")))
    if kind == "hardtanh" and low is None:
        low = -1.0
    return isinstance(low, (int, float)) and low == 0
