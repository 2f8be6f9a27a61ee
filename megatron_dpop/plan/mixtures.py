"""What a layer with a mixture of experts keeps, sends and multiplies, on one device.

Tokens are taken to spread evenly over the experts, as an auxiliary loss or long training makes them do: an expert
that gets twice the mean takes its device twice the memory and time. The layer is Megatron-Core's with an all-to-all
(Lepikhin et al. 2020, "GShard"): each token's hidden state goes to each of its experts and comes back, and none is
dropped.
"""

from dpop_base.architectures import Architecture
from dpop_base.architectures.architecture import Experts
from megatron_dpop.plan.choice import BYTES, LayoutChoice
from megatron_dpop.plan.parameters import expert_entries
from megatron_dpop.plan.workload import MeanRow


def experts_of(architecture: Architecture) -> Experts:
    """Returns what the architecture says of its experts. Raises ValueError where it has none."""
    if architecture.experts is None:
        raise ValueError(f"{architecture.family} has no experts")
    return architecture.experts


def sent_tokens(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> float:
    """Hidden states that a device sends to experts in one layer: each of its tokens once to each of its experts."""
    tokens = row.tokens / choice.context / choice.sequence_shards
    return tokens * experts_of(architecture).per_token


def received_tokens(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> float:
    """Hidden states that a device's experts work on: all those of the ranks that share each expert's matrices."""
    return sent_tokens(architecture, choice, row) * choice.expert_tensor


def mixture_activations(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> dict[str, float]:
    """Bytes that the feed-forward half keeps for its backward pass, after its norm."""
    experts, size = experts_of(architecture), choice.bytes
    tokens = row.tokens / choice.context / choice.sequence_shards
    received = received_tokens(architecture, choice, row)
    ffn = experts.ffn_hidden_size / choice.expert_tensor
    kept = {
        "probabilities of the experts": tokens * experts.count * BYTES["fp32"],
        "hidden states by expert": received * architecture.hidden_size * size,
        "output of the experts' linear_fc1": 2 * received * ffn * size,
        "output of their gates, and this by the tokens' shares": 2 * received * ffn * size,
    }
    if experts.shared_ffn_hidden_size is not None:
        shared = row.tokens / choice.context * experts.shared_ffn_hidden_size / choice.tensor
        kept["of the shared expert, between its matrices"] = 3 * shared * size
        kept["output of the shared expert"] = tokens * architecture.hidden_size * size
    return kept


def mixture_backward_bytes(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> float:
    """The most that the backward pass holds of its own: gradients of the experts' outputs, of the gate and of weights.

    Grouped products give the weight gradients of all of a device's experts at once. What other ranks send lies beside
    what is sent to them, and in fp32 where it is summed.
    """
    sent = sent_tokens(architecture, choice, row) * architecture.hidden_size if choice.expert > 1 else 0.0
    received = received_tokens(architecture, choice, row)
    ffn = experts_of(architecture).ffn_hidden_size / choice.expert_tensor
    gradients = sent + received * (architecture.hidden_size + 3 * ffn)
    weights = 0 if choice.lora else expert_entries(architecture, choice) / 3
    summed = 2 * received * architecture.hidden_size * BYTES["fp32"] if choice.expert_tensor > 1 else 0.0
    return (gradients + weights) * choice.bytes + summed


def mixture_bytes_sent(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> float:
    """Bytes that a device sends in one layer's forward pass: to the experts and back. Backward sends as many.

    Each hidden state goes with its share of the expert. Where ranks share each expert's matrices they gather what each
    of them received, and sum what comes out in fp32.
    """
    sent, hidden = sent_tokens(architecture, choice, row), architecture.hidden_size
    there = hidden * choice.bytes + BYTES["fp32"]
    back, summed = hidden * choice.bytes, hidden * BYTES["fp32"]
    away = (choice.expert - 1) / choice.expert
    return sent * ((there + back) * away + (there + summed) * (choice.expert_tensor - 1))


def mixture_products(architecture: Architecture, choice: LayoutChoice, row: MeanRow) -> list[tuple[float, int, int]]:
    """(tokens, outputs, inputs) of each product of the feed-forward half: experts', shared expert's, router's."""
    experts, hidden = experts_of(architecture), architecture.hidden_size
    here = experts.count // choice.expert
    of_one = received_tokens(architecture, choice, row) / here
    ffn = experts.ffn_hidden_size // choice.expert_tensor
    tokens = row.tokens / choice.context
    products = [(of_one, 2 * ffn, hidden), (of_one, hidden, ffn)] * here
    products.append((tokens / choice.sequence_shards, experts.count, hidden))
    if experts.shared_ffn_hidden_size is not None:
        shared = experts.shared_ffn_hidden_size // choice.tensor
        products += [(tokens, 2 * shared, hidden), (tokens, hidden, shared)]
    return products
