"""Sizes and layouts as functions of the architecture: how Megatron's rows are made of a family's rows."""

from collections.abc import Callable

from dpop_base.architectures.architecture import Architecture, Experts

Size = Callable[[Architecture], int]
# (index of the source, first row, rows), in the order in which Megatron stores them
Layout = Callable[[Architecture], list[tuple[int, int, int]]]


def vocabulary(a: Architecture) -> int:
    return a.vocab_size


def hidden(a: Architecture) -> int:
    return a.hidden_size


def feed_forward(a: Architecture) -> int:
    return a.ffn_hidden_size


def of_experts(read: Callable[[Experts], int | None]) -> Size:
    """A size that only a mixture of experts has."""

    def size(a: Architecture) -> int:
        assert a.experts is not None
        found = read(a.experts)
        assert found is not None
        return found

    return size


num_experts = of_experts(lambda experts: experts.count)
expert_feed_forward = of_experts(lambda experts: experts.ffn_hidden_size)
shared_feed_forward = of_experts(lambda experts: experts.shared_ffn_hidden_size)


def one(a: Architecture) -> int:
    return 1


def head(a: Architecture) -> int:
    return a.head_dim


def queries(a: Architecture) -> int:
    return a.num_attention_heads * a.head_dim


def whole(size: Size) -> Layout:
    """The source as it is."""
    return lambda a: [(0, 0, size(a))]


def gate_then_up(size: Size) -> Layout:
    """`linear_fc1`: all gate rows, then all up rows."""
    return lambda a: [(0, 0, size(a)), (1, 0, size(a))]


def grouped_qkv(a: Architecture) -> list[tuple[int, int, int]]:
    """`linear_qkv` from q, k and v: per key/value head, the rows of its query heads, its key, its value."""
    d = a.head_dim
    q = a.num_attention_heads // a.num_key_value_heads * d
    return [part for g in range(a.num_key_value_heads) for part in ((0, g * q, q), (1, g * d, d), (2, g * d, d))]


def grouped_from_fused_qkv(a: Architecture) -> list[tuple[int, int, int]]:
    """`linear_qkv` from one tensor [q; k; v] (Qwen1's `c_attn`, Phi-3's `qkv_proj`)."""
    q, k = a.num_attention_heads * a.head_dim, a.num_key_value_heads * a.head_dim
    first = (0, q, q + k)  # row of the tensor
    return [(0, first[part] + start, rows) for part, start, rows in grouped_qkv(a)]


def fused_gate_up(a: Architecture) -> list[tuple[int, int, int]]:
    """`linear_fc1` from one tensor [gate; up], as Megatron stores it."""
    return [(0, 0, 2 * a.ffn_hidden_size)]
