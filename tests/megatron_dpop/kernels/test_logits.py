"""The output layer's kernels in Triton's interpreter, beside plain torch: tile by tile, and the whole function."""

import pytest
import torch

from megatron_dpop.kernels import logits as kernels
from megatron_dpop.logprobs.chunking import Chunking
from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs
from tests.megatron_dpop.kernels.interpreted import interpreted

pytestmark = interpreted

ROWS, COLUMNS, FIRST = 6, 5000, 700
TARGETS = torch.tensor([0, FIRST, FIRST + COLUMNS - 1, FIRST - 1, FIRST + COLUMNS, FIRST + 17])
INSIDE = (TARGETS >= FIRST) & (TARGETS < FIRST + COLUMNS)


def test_statistics_of_two_tiles_are_those_of_their_logits() -> None:
    torch.manual_seed(0)
    logits = 8 * torch.randn(ROWS, FIRST + COLUMNS)
    maximum = torch.full((ROWS,), torch.finfo(torch.float32).min)
    sum_exp, target_logit = torch.zeros(ROWS), torch.zeros(ROWS)
    for tile in (slice(0, FIRST), slice(FIRST, FIRST + COLUMNS)):
        kernels.take_in_logits(logits[:, tile], TARGETS, tile.start, maximum, sum_exp, target_logit)
    assert torch.equal(maximum, logits.amax(1))
    torch.testing.assert_close(maximum + sum_exp.log(), logits.logsumexp(1), rtol=1e-6, atol=1e-5)
    inside = TARGETS < FIRST + COLUMNS
    assert torch.equal(target_logit[inside], logits[inside, TARGETS[inside]])
    assert not target_logit[~inside].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_a_tile(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits, grad = 8 * torch.randn(ROWS, COLUMNS), torch.randn(ROWS)
    normalizer = logits.logsumexp(1)
    out = torch.empty(ROWS, COLUMNS, dtype=dtype)
    kernels.logits_gradient(logits, TARGETS, FIRST, normalizer, grad, out)
    expected = -grad[:, None] * (logits - normalizer[:, None]).exp()
    expected[INSIDE, TARGETS[INSIDE] - FIRST] += grad[INSIDE]
    torch.testing.assert_close(out, expected.to(dtype), rtol=1e-5 if dtype is torch.float32 else 2**-7, atol=1e-6)


@pytest.mark.parametrize(("scores", "dtype"), [(1, torch.bfloat16), (40, torch.float32), (33, torch.bfloat16)])
def test_log_probabilities_are_those_of_plain_torch(scores: int, dtype: torch.dtype) -> None:
    """With padded rows, padded vocabulary, targets in every tile, and a gradient that is added to what is there."""
    torch.manual_seed(0)
    results = []
    hidden, weight = torch.randn(scores, 24).to(dtype), torch.randn(304, 24).to(dtype)
    targets = torch.randint(0, 290, (scores,))
    upstream = torch.randn(scores)
    for fused in (False, True):
        states, matrix = hidden.clone().requires_grad_(), torch.nn.Parameter(weight.clone())
        matrix.main_grad = torch.ones(304, 24)
        logps = vocab_parallel_linear_logprobs(
            states, matrix, targets, vocab_size=290, tp_group=None, chunking=Chunking(32, 96, 16), fused=fused
        )
        logps.backward(upstream)
        results.append((logps.detach(), states.grad, matrix.main_grad))
    plain, found = results
    torch.testing.assert_close(found[0], plain[0], rtol=1e-6, atol=2e-6)
    for part, other in zip(found[1:], plain[1:], strict=True):
        torch.testing.assert_close(part, other, rtol=2**-7 if part.dtype is torch.bfloat16 else 2e-5, atol=1e-4)
