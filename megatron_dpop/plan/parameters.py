"""Entries of weights that a device holds, exactly. All devices of a pipeline stage hold equally many."""

from dataclasses import dataclass

from dpop_base.architectures import Architecture
from megatron_dpop.config.layout import padded_vocabulary
from megatron_dpop.config.schema import LoraConfig
from megatron_dpop.plan.choice import LayoutChoice, Widths


@dataclass(frozen=True)
class Parameters:
    """The parameters of one device."""

    linear: int  # matrices of the transformer's linear layers: what FP8 applies to
    output: int  # the output layer, where it is not the embedding itself
    other: int  # embedding, norms, biases, routers
    experts: int = 0  # matrices of the experts that tokens are sent to: cut and repeated over ranks of their own
    adapters: int = 0  # but those of experts
    expert_adapters: int = 0
    frozen: int = 0  # of the model's, without adapters

    @property
    def base(self) -> int:
        """Entries of the model, without adapters."""
        return self.linear + self.output + self.other + self.experts

    def trainable(self, lora: LoraConfig | None) -> int:
        return self.base - self.frozen if lora is None else self.adapters + self.expert_adapters

    def trainable_experts(self, lora: LoraConfig | None) -> int:
        """Those of `trainable` that are cut and repeated as experts are."""
        return self.experts if lora is None else self.expert_adapters

    def shared_out(self, choice: LayoutChoice) -> float:
        """Trained entries of which this device keeps the optimizer's state, where ranks with equal weights share it."""
        trained = self.trainable(choice.lora)
        if not choice.distributed_optimizer:
            return trained
        experts = self.trainable_experts(choice.lora)
        return (trained - experts) / choice.data_shards + experts / choice.expert_data_shards


def layer_matrices(widths: Widths) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each linear layer on one tensor-parallel rank, by Megatron's names."""
    return {
        "linear_qkv": (widths.query + 2 * widths.key, widths.hidden),
        "linear_proj": (widths.hidden, widths.query),
        **feed_forward_matrices(widths.hidden, widths.ffn),
    }


def feed_forward_matrices(hidden: int, ffn: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of one feed-forward, of an expert's too, if this rank holds `ffn` of its inner entries."""
    return {"linear_fc1": (2 * ffn, hidden), "linear_fc2": (hidden, ffn)}


def adapter_entries(matrices: dict[str, tuple[int, int]], lora: LoraConfig) -> int:
    """Each target's two factors; the one on the side that is not split is whole on each rank."""
    return sum(lora.rank * sum(matrices[target]) for target in lora.targets if target in matrices)


def expert_entries(architecture: Architecture, choice: LayoutChoice) -> int:
    """Counts one layer's, on one device: of the experts that tokens are sent to. 0 where there are none."""
    experts = architecture.experts
    if experts is None:
        return 0
    one = 3 * architecture.hidden_size * experts.ffn_hidden_size // choice.expert_tensor
    return experts.count // choice.expert * one


def stage_parameters(architecture: Architecture, choice: LayoutChoice, stage: int) -> Parameters:
    """What each device of a pipeline stage holds, all its model chunks together."""
    widths = Widths.of(architecture, choice)
    numbers = choice.layers_of_stage(architecture.num_layers, stage)
    layers, mixtures = len(numbers), architecture.mixtures_among(numbers)
    norms = (4 if architecture.post_norms else 2) * widths.hidden + (2 * widths.head_dim if architecture.qk_norm else 0)
    biases = (widths.query + 2 * widths.key if architecture.qkv_bias else 0) + (
        widths.hidden if architecture.attention_output_bias else 0
    )
    vocabulary = padded_vocabulary(architecture.vocab_size, choice.tensor) // choice.tensor * widths.hidden
    is_first, is_last = stage == 0, stage == choice.pipeline - 1
    # A tied output layer needs a copy of its own where the embedding is on another device.
    has_output = is_last and not (architecture.tied_embeddings and is_first)
    sizes = {name: outputs * inputs for name, (outputs, inputs) in layer_matrices(widths).items()}
    attention = sizes["linear_qkv"] + sizes["linear_proj"]
    feed_forward = sizes["linear_fc1"] + sizes["linear_fc2"]
    shared, router = _beside_experts(architecture, choice)
    adapters, expert_adapters = _adapters(architecture, choice, widths, layers, mixtures)
    return Parameters(
        linear=layers * attention + (layers - mixtures) * feed_forward + mixtures * shared,
        output=vocabulary if has_output else 0,
        other=layers * (norms + biases)
        + mixtures * router
        + (vocabulary if is_first else 0)
        + (widths.hidden if is_last else 0),
        experts=mixtures * expert_entries(architecture, choice),
        adapters=adapters,
        expert_adapters=expert_adapters,
        frozen=mixtures * router_entries(architecture) if choice.freeze_router else 0,
    )


def _adapters(
    architecture: Architecture, choice: LayoutChoice, widths: Widths, layers: int, mixtures: int
) -> tuple[int, int]:
    """Entries of a stage's adapters, but experts', and of experts'."""
    lora, experts = choice.lora, architecture.experts
    if lora is None:
        return 0, 0
    everywhere = adapter_entries(layer_matrices(widths), lora)
    if experts is None:
        return layers * everywhere, 0
    attention = everywhere - adapter_entries(feed_forward_matrices(widths.hidden, widths.ffn), lora)
    shared_ffn = (experts.shared_ffn_hidden_size or 0) // choice.tensor
    shared = adapter_entries(feed_forward_matrices(widths.hidden, shared_ffn), lora) if shared_ffn else 0
    of_one = adapter_entries(
        feed_forward_matrices(widths.hidden, experts.ffn_hidden_size // choice.expert_tensor), lora
    )
    outside = (layers - mixtures) * everywhere + mixtures * (attention + shared)
    return outside, mixtures * experts.count // choice.expert * of_one


def router_entries(architecture: Architecture) -> int:
    """Counts one layer's, without the shared expert's gate."""
    return 0 if architecture.experts is None else architecture.experts.count * architecture.hidden_size


def _beside_experts(architecture: Architecture, choice: LayoutChoice) -> tuple[int, int]:
    """Entries of a mixture's shared expert, and of its router with the shared expert's gate, which no rank splits."""
    experts = architecture.experts
    if experts is None:
        return 0, 0
    shared = experts.shared_ffn_hidden_size or 0
    gates = experts.count + (1 if shared else 0)
    return 3 * architecture.hidden_size * shared // choice.tensor, gates * architecture.hidden_size


def token_parameters(architecture: Architecture) -> int:
    """Counts what one token passes through ("active"): the whole model but for the experts it is not sent to."""
    experts = architecture.experts
    if experts is None:
        return model_parameters(architecture)
    mixtures = architecture.num_layers - len(experts.dense_layers)
    idle = (experts.count - experts.per_token) * 3 * architecture.hidden_size * experts.ffn_hidden_size
    return model_parameters(architecture) - mixtures * idle


def model_parameters(architecture: Architecture) -> int:
    """Counts the whole model as published: heads and vocabulary without padding."""
    whole = stage_parameters(architecture, LayoutChoice(), 0)
    padding = padded_vocabulary(architecture.vocab_size, 1) - architecture.vocab_size
    return whole.base - padding * architecture.hidden_size * (1 if architecture.tied_embeddings else 2)
