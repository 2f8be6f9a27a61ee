"""The plain float64 formulas that the tests compare with."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """A random output layer: hidden [S, H], weight [padded vocabulary, H], targets [S], upstream gradient [S]."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    upstream: Tensor
    vocab_size: int


@dataclass(frozen=True)
class DenseScores:
    """float64 results on materialised logits."""

    logprobs: Tensor
    hidden_grad: Tensor
    weight_grad: Tensor
    entropy: Tensor
    is_top1: Tensor


def make_problem(
    *, seed: int, scores: int, hidden: int, vocab_size: int, padded: int, dtype: torch.dtype, scale: float = 1.0
) -> Problem:
    """Logits have a standard deviation of about `scale`; the padding rows hold large numbers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(padded, hidden, generator=generator, dtype=torch.float64) * scale / hidden**0.5
    weight[vocab_size:] = 100.0
    return Problem(
        hidden=torch.randn(scores, hidden, generator=generator, dtype=torch.float64).to(dtype),
        weight=weight.to(dtype),
        targets=torch.randint(0, vocab_size, (scores,), generator=generator),
        upstream=torch.randn(scores, generator=generator, dtype=torch.float64),
        vocab_size=vocab_size,
    )


def dense_scores(problem: Problem) -> DenseScores:
    """Log-softmax of all logits in float64, from the inputs as they are."""
    hidden = problem.hidden.detach().double().clone().requires_grad_()
    weight = problem.weight.detach().double().clone().requires_grad_()
    logits = hidden @ weight[: problem.vocab_size].t()
    log_softmax = logits.log_softmax(-1)
    logprobs = log_softmax.gather(1, problem.targets[:, None]).squeeze(1)
    (logprobs * problem.upstream).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    with torch.no_grad():
        entropy = torch.special.entr(log_softmax.exp()).sum(-1)
        chosen = logits.gather(1, problem.targets[:, None]).squeeze(1)
        is_top1 = chosen >= logits.amax(-1) if len(logits) else chosen.bool()
    return DenseScores(logprobs.detach(), hidden.grad, weight.grad, entropy, is_top1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute error, relative to the largest expected magnitude, or to 1 where that is smaller."""
    if expected.numel() == 0:
        return 0.0
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def logprob_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error of a score, each relative to its own magnitude, or to 1 where that is smaller.

    Not the plain absolute error: fp32 numbers between 8 and 16 are 1e-6 apart, whatever computed them.
    """
    if expected.numel() == 0:
        return 0.0
    return float(((actual.double() - expected).abs() / expected.abs().clamp(min=1.0)).max())
