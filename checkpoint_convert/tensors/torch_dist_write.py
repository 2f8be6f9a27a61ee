"""The small files that turn a folder of tensor archives into a `torch_dist` checkpoint that Megatron loads."""

import argparse
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_convert.tensors.archive import tensor_call, write_object_archive
from checkpoint_convert.tensors.pickle_write import Call, Name, dumps
from checkpoint_convert.tensors.stacked import LAYERS, stacked_axes, stacked_key
from dpop_base.architectures.architecture import Architecture, LinearScaling, RopeScaling, YarnScaling
from dpop_base.dtypes import TORCH_NAMES
from dpop_base.files import replacing

EXTRA_STATE_FILE = "__1_0.distcp"
# What Transformer Engine's modules ask for beside their weights; the local spec does not, and ignores it.
_ATTENTION = ("self_attention.linear_qkv", "self_attention.linear_proj")
_DENSE = ("mlp.linear_fc1", "mlp.linear_fc2")
_SPARSE = ("pre_mlp_layernorm", "mlp.shared_experts.linear_fc1", "mlp.shared_experts.linear_fc2")
_EXPERT = ("mlp.experts.experts.{expert}.linear_fc1", "mlp.experts.experts.{expert}.linear_fc2")
_POST_NORMS = ("self_attention.linear_proj.post_layernorm", "mlp.linear_fc2.post_layernorm")
_PER_LAYER_NORMS = ("self_attention.q_layernorm", "self_attention.k_layernorm")


@dataclass(frozen=True)
class StoredChunk:
    """A block of rows of one Megatron tensor (`decoder.layers.N....` for a layer's), and where it was written."""

    tensor: str
    dtype: str
    first_row: int
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


def write_checkpoint_files(folder: Path, architecture: Architecture, chunks: Iterable[StoredChunk]) -> None:
    """Writes Transformer Engine's empty states, `common.pt`, `.metadata` and, last, `metadata.json`."""
    entries: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    _add_tensors(entries, places, architecture, chunks)
    _write_extra_states(folder, entries, places, architecture)
    with replacing(folder / "common.pt", sync_folder=False) as temporary, open(temporary, "wb") as stream:
        write_object_archive(stream, common_state(architecture))
    with replacing(folder / ".metadata", sync_folder=False) as temporary:
        temporary.write_bytes(dumps(Call(_metadata("Metadata"), entries, {}, places)))
    with replacing(folder / "metadata.json") as temporary:
        temporary.write_text(json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1}))


def common_state(a: Architecture) -> dict[str, object]:
    """
    What Megatron keeps beside tensors. Megatron-LM's `--load` reads the parallel sizes from `args`, and
    `--use-checkpoint-args` the shape; the stacked layout is Megatron-Core's default.
    """
    arguments = argparse.Namespace(
        num_layers=a.num_layers,
        hidden_size=a.hidden_size,
        ffn_hidden_size=a.ffn_hidden_size,
        num_attention_heads=a.num_attention_heads,
        group_query_attention=a.num_key_value_heads != a.num_attention_heads,
        num_query_groups=a.num_key_value_heads,
        kv_channels=a.head_dim,
        seq_length=a.max_position_embeddings,
        max_position_embeddings=a.max_position_embeddings,
        position_embedding_type="yarn" if isinstance(a.rope_scaling, YarnScaling) else "rope",
        rotary_base=int(a.rope_theta) if a.rope_theta.is_integer() else a.rope_theta,
        rotary_percent=a.rotary_percent,
        rotary_interleaved=a.rotary_interleaved,
        use_rope_scaling=isinstance(a.rope_scaling, RopeScaling),
        **_rope_scaling(a),
        **_experts(a),
        no_rope_freq=a.unrotated_pattern,
        window_size=(a.sliding_window - 1, 0) if a.sliding_window else None,
        window_attn_skip_freq=a.window_pattern,
        softmax_scale=a.attention_scale,
        swiglu=a.activation == "silu",
        normalization="RMSNorm",
        apply_layernorm_1p=a.zero_centered_norms,
        norm_epsilon=a.norm_epsilon,
        add_position_embedding=True,
        add_bias_linear=False,
        add_qkv_bias=a.qkv_bias,
        qk_layernorm=a.qk_norm,
        untie_embeddings_and_output_weights=not a.tied_embeddings,
        vocab_size=a.vocab_size,
        padded_vocab_size=a.vocab_size,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        world_size=1,
        data_parallel_size=1,
        no_save_optim=True,
        no_save_rng=True,
    )
    content = {"singleton_local_shards": False}
    return {"args": arguments, "checkpoint_version": 3.0, "iteration": 0, "content_metadata": content}


def _experts(a: Architecture) -> dict[str, object]:
    if a.experts is None:
        return {}
    return {
        "num_experts": a.experts.count,
        "moe_ffn_hidden_size": a.experts.ffn_hidden_size,
        "moe_router_topk": a.experts.per_token,
        "moe_router_pre_softmax": not a.experts.shares_sum_to_one,
        "moe_router_score_function": "softmax",
        "moe_shared_expert_intermediate_size": a.experts.shared_ffn_hidden_size,
        "moe_shared_expert_gate": a.experts.shared_ffn_hidden_size is not None,
        "moe_layer_freq": a.expert_pattern or 1,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": 1,
    }


def _rope_scaling(a: Architecture) -> dict[str, object]:
    scaling = a.rope_scaling
    if isinstance(
        scaling, RopeScaling
    ):  # Megatron-LM has an argument for the factor alone; the others are NeMo's words
        return {
            "rope_scaling_factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "old_context_len": scaling.original_max_position_embeddings,
        }
    if isinstance(scaling, LinearScaling):
        return {"rotary_seq_len_interpolation_factor": scaling.factor}
    if isinstance(scaling, YarnScaling):
        # With mscale_all_dim 0 cosines and sines are multiplied by 0.1 * mscale * log(factor) + 1.
        mscale = 10 * (scaling.attention_factor - 1) / math.log(scaling.factor) if scaling.factor > 1 else 1.0
        return {
            "rotary_scaling_factor": scaling.factor,
            "yarn_original_max_position_embeddings": scaling.original_max_position_embeddings,
            "yarn_beta_fast": scaling.beta_fast,
            "yarn_beta_slow": scaling.beta_slow,
            "yarn_correction_range_round_to_int": scaling.truncate,
            "mscale": mscale,
            "mscale_all_dim": 0.0,
        }
    return {}


def _add_tensors(
    entries: dict[str, Any], places: dict[Any, Any], a: Architecture, chunks: Iterable[StoredChunk]
) -> None:
    """Adds to `entries` what each key is, and to `places` where each of its chunks lies."""
    sizes: dict[str, list[int]] = {}
    stored: dict[str, list[Call]] = {}
    dtypes: dict[str, str] = {}
    for chunk in chunks:
        key, leading = stacked_key(chunk.tensor, layers_are_alike=a.layers_are_alike)
        size = sizes.setdefault(key, [*stack_sizes(key, a), 0, *chunk.shape[1:]])
        size[len(leading)] = max(size[len(leading)], chunk.first_row + chunk.shape[0])
        dtypes[key] = chunk.dtype
        offset = _size(*leading, chunk.first_row, *[0] * (len(chunk.shape) - 1))
        of_key = stored.setdefault(key, [])
        places[Call(_metadata("MetadataIndex"), key, offset, len(of_key))] = _place(
            chunk.file, chunk.offset, chunk.length
        )
        on_disk = _size(*[1] * len(leading), *chunk.shape)
        of_key.append(Call(_metadata("ChunkStorageMetadata"), offset, on_disk))
    for key, size in sizes.items():
        properties = Call(_metadata("TensorProperties"), Name("torch", TORCH_NAMES[dtypes[key]]))
        entries[key] = Call(_metadata("TensorStorageMetadata"), properties, _size(*size), stored[key])


def _write_extra_states(folder: Path, entries: dict[str, Any], places: dict[Any, Any], a: Architecture) -> None:
    """An empty tensor is how Transformer Engine says that a module has no FP8 state."""
    buffer = io.BytesIO()
    write_object_archive(buffer, [tensor_call((0,), "uint8")], {"0": b""})
    empty = buffer.getvalue()
    keys = [_extra_state_key(f"{LAYERS}{layer}.{m}", a) for layer in range(a.num_layers) for m in _modules(a, layer)]
    keys.append("decoder.final_layernorm._extra_state/shard_0_1")
    for number, key in enumerate(keys):
        entries[key] = Call(_metadata("BytesStorageMetadata"))
        places[Call(_metadata("MetadataIndex"), key)] = _place(EXTRA_STATE_FILE, number * len(empty), len(empty))
    with replacing(folder / EXTRA_STATE_FILE, sync_folder=False) as temporary:
        temporary.write_bytes(empty * len(keys))


def _modules(a: Architecture, layer: int) -> list[str]:
    """A layer's modules that have an extra state."""
    found = [*_ATTENTION, *(_PER_LAYER_NORMS if a.qk_norm else ()), *(_POST_NORMS if a.post_norms else ())]
    if a.experts is None or not a.has_experts(layer):
        return [*found, *_DENSE]
    shared = a.experts.shared_ffn_hidden_size is not None
    found += _SPARSE if shared else _SPARSE[:1]
    return found + [module.format(expert=expert) for module in _EXPERT for expert in range(a.experts.count)]


def _extra_state_key(module: str, a: Architecture) -> str:
    """Megatron's name of an object among others: its place in the stack, and the stack's sizes."""
    key, place = stacked_key(f"{module}._extra_state", layers_are_alike=a.layers_are_alike)
    place, sizes = place or (0,), stack_sizes(key, a) or (1,)
    return f"{key}/shard_{'.'.join(map(str, place))}_{'.'.join(map(str, sizes))}"


def stack_sizes(key: str, a: Architecture) -> tuple[int, ...]:
    """Returns the sizes of a key's axes that count layers and experts."""
    layers = (a.num_layers,) if a.layers_are_alike and key.startswith(LAYERS) else ()
    return layers if a.experts is None or stacked_axes(key) == len(layers) else (*layers, a.experts.count)


def _metadata(name: str) -> Name:
    return Name("torch.distributed.checkpoint.metadata", name)


def _place(file: str, offset: int, length: int) -> Call:
    return Call(Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), file, offset, length)


def _size(*sizes: int) -> Call:
    return Call(Name("torch", "Size"), sizes)
