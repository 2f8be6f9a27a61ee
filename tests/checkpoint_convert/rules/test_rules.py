"""For any architecture of any family: every row of every tensor has exactly one place, both ways."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import TensorRecipe, from_megatron, to_megatron
from checkpoint_convert.rules.segments import Segment, slice_segments
from dpop_base.architectures import Architecture
from dpop_base.architectures.architecture import Experts


@st.composite
def experts(draw: st.DrawFn, family: str, layers: int) -> Experts:
    dense = () if family == "mixtral" else draw(st.sets(st.integers(0, layers - 1), max_size=layers - 1))
    return Experts(
        count=draw(st.integers(1, 5)),
        per_token=1,
        ffn_hidden_size=draw(st.integers(1, 12)),
        shares_sum_to_one=draw(st.booleans()),
        shared_ffn_hidden_size=draw(st.integers(1, 9)) if family == "qwen2_moe" else None,
        dense_layers=tuple(sorted(dense)),
    )


@st.composite
def architectures(draw: st.DrawFn) -> Architecture:
    family = draw(st.sampled_from(sorted(RULES)))
    groups = draw(st.integers(1, 5))
    per_group = 1 if family == "qwen" else draw(st.integers(1, 4))
    layers = draw(st.integers(1, 3))
    return Architecture(
        family=family,
        num_layers=layers,
        experts=draw(experts(family, layers)) if family in ("mixtral", "qwen2_moe", "qwen3_moe") else None,
        hidden_size=draw(st.integers(1, 24)),
        ffn_hidden_size=draw(st.integers(1, 40)),
        num_attention_heads=groups * per_group,
        num_key_value_heads=groups,
        head_dim=2 * draw(st.integers(1, 5)),
        vocab_size=draw(st.integers(1, 50)),
        max_position_embeddings=64,
        norm_epsilon=1e-5,
        rope_theta=1e4,
        tied_embeddings=draw(st.booleans()),
        qkv_bias=family == "qwen" or draw(st.booleans()),
        attention_output_bias=draw(st.booleans()),
        qk_norm=draw(st.booleans()),
        post_norms=family in ("gemma3_text", "glm4"),
    )


def apply(recipes: list[TensorRecipe], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recipes carried out on whole tensors: what the streaming conversion must amount to."""
    made = {}
    for recipe in recipes:
        parts = [tensors[s.source][s.start : s.start + s.rows] for s in recipe.segments]
        made[recipe.name] = torch.cat(parts)
        assert tuple(made[recipe.name].shape) == recipe.shape
    return made


def numbered(recipes: list[TensorRecipe]) -> dict[str, Tensor]:
    """Tensors of these shapes, no two elements alike."""
    tensors, first = {}, 0
    for recipe in recipes:
        count = torch.Size(recipe.shape).numel()
        tensors[recipe.name] = torch.arange(first, first + count).view(recipe.shape)
        first += count
    return tensors


@settings(max_examples=200, deadline=None)
@given(architectures())
def test_every_rule_is_inverted_exactly(a: Architecture) -> None:
    there, back = to_megatron(RULES[a.family], a), from_megatron(RULES[a.family], a)
    original = numbered(back)
    assert len(original) == len(back)  # no name produced twice
    megatron = apply(there, original)
    assert len(megatron) == len(there)
    returned = apply(back, megatron)
    assert returned.keys() == original.keys()
    assert all(torch.equal(returned[name], tensor) for name, tensor in original.items())
    assert sum(t.numel() for t in megatron.values()) == sum(t.numel() for t in original.values())


@settings(max_examples=50, deadline=None)
@given(architectures())
def test_query_key_value_stand_where_megatron_reads_them(a: Architecture) -> None:
    """Against Megatron's own reading of linear_qkv: view as [groups, (queries, key, value), head_dim] and split."""
    original = numbered(from_megatron(RULES[a.family], a))
    megatron = apply(to_megatron(RULES[a.family], a), original)
    groups, d = a.num_key_value_heads, a.head_dim
    per_group = a.num_attention_heads // groups
    mixed = megatron["decoder.layers.0.self_attention.linear_qkv.weight"].view(groups, per_group + 2, d, -1)
    query, key, value = (part.reshape(-1, a.hidden_size) for part in mixed.split([per_group, 1, 1], dim=1))
    fused = {"qwen": "transformer.h.0.attn.c_attn.weight", "phi3": "model.layers.0.self_attn.qkv_proj.weight"}
    if a.family in fused:
        expected = original[fused[a.family]].split([a.num_attention_heads * d, groups * d, groups * d])
    else:
        expected = tuple(original[f"model.layers.0.self_attn.{n}_proj.weight"] for n in "qkv")
    assert all(torch.equal(x, y) for x, y in zip((query, key, value), expected, strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.data())
def test_slices_of_segments_make_up_the_whole(rows: list[int], data: st.DataObject) -> None:
    segments = [Segment(str(i), 3 * i, n) for i, n in enumerate(rows)]
    whole = [(s.source, s.start + r) for s in segments for r in range(s.rows)]
    first = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - first))
    found = [(s.source, s.start + r) for s in slice_segments(segments, first, count) for r in range(s.rows)]
    assert found == whole[first : first + count]
