"""The same log-probabilities with the vocabulary sharded over 1, 2 and 4 gloo ranks."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from megatron_dpop.logprobs.chunking import Chunking
from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs, vocab_parallel_linear_scores
from tests.distributed import run_ranks
from tests.megatron_dpop.logprobs.dense import Problem, dense_scores, logprob_error, make_problem, relative_error

CHUNKING = Chunking(tokens=16, vocab=12, row_tile=8)


def _shard(problem: Problem) -> torch.Tensor:
    return problem.weight.chunk(dist.get_world_size())[dist.get_rank()].clone()


def _check(problem: Problem) -> None:
    """Values, gradients and metrics of this rank against dense ones."""
    double = problem.hidden.dtype == torch.float64
    value, gradient = (1e-13, 1e-12) if double else (1e-6, 1e-5)
    expected = dense_scores(problem)
    hidden, weight = problem.hidden.clone().requires_grad_(), _shard(problem).requires_grad_()
    scored = vocab_parallel_linear_scores(
        hidden,
        weight,
        problem.targets,
        vocab_size=problem.vocab_size,
        tp_group=dist.group.WORLD,
        entropy=True,
        chunking=CHUNKING,
    )
    (scored.logprobs * problem.upstream.to(scored.logprobs.dtype)).sum().backward()
    assert logprob_error(scored.logprobs.detach(), expected.logprobs) < value
    assert scored.entropy is not None
    assert relative_error(scored.entropy, expected.entropy) < 3 * value
    if double:
        assert torch.equal(scored.is_top1, expected.is_top1)
    assert hidden.grad is not None
    assert weight.grad is not None
    assert relative_error(hidden.grad, expected.hidden_grad) < gradient
    own = expected.weight_grad.chunk(dist.get_world_size())[dist.get_rank()]
    assert relative_error(weight.grad, own) < gradient


def check_random_shapes() -> int:
    """Every rank draws the same examples (derandomized); no shrinking, which ranks would not do in step."""
    world, seen = dist.get_world_size(), 0

    @settings(
        max_examples=60,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        seed=st.integers(0, 2**31),
        scores=st.integers(0, 40),
        hidden=st.integers(1, 24),
        shard=st.integers(1, 30),
        missing=st.integers(0, 40),
        dtype=st.sampled_from([torch.float64, torch.float32]),
    )
    def check(seed, scores, hidden, shard, missing, dtype):
        nonlocal seen
        padded = shard * world
        vocab_size = max(padded - missing, 1)  # leaves whole ranks with nothing but padding at times
        _check(make_problem(seed=seed, scores=scores, hidden=hidden, vocab_size=vocab_size, padded=padded, dtype=dtype))
        seen += 1

    check()
    return seen


def check_borders() -> None:
    """Targets on both sides of every shard border and of the true vocabulary's end."""
    world, shard = dist.get_world_size(), 10
    vocab_size = shard * world - 3
    edges = [rank * shard + offset for rank in range(world) for offset in (0, 1, shard - 2, shard - 1)]
    targets = torch.tensor([min(edge, vocab_size - 1) for edge in edges])
    base = make_problem(
        seed=1, scores=len(targets), hidden=6, vocab_size=vocab_size, padded=shard * world, dtype=torch.float64
    )
    _check(Problem(base.hidden, base.weight, targets, base.upstream, vocab_size))


def check_hidden_gradient_parts() -> torch.Tensor:
    """reduce_hidden_grad=False leaves parts whose sum is the reduced gradient."""
    problem = make_problem(seed=2, scores=20, hidden=6, vocab_size=38, padded=40, dtype=torch.float64)
    gradients = []
    for reduce_hidden_grad in (True, False):
        hidden = problem.hidden.clone().requires_grad_()
        vocab_parallel_linear_logprobs(
            hidden,
            _shard(problem),
            problem.targets,
            vocab_size=38,
            tp_group=dist.group.WORLD,
            reduce_hidden_grad=reduce_hidden_grad,
        ).sum().backward()
        gradients.append(hidden.grad)
    reduced, part = gradients
    if dist.get_world_size() > 1:
        assert relative_error(part, reduced) > 1e-3
    dist.all_reduce(part)
    assert relative_error(part, reduced) < 1e-12
    return reduced


def scores_of_subset(rows: list[int], dtype: torch.dtype, keep_gradients: bool) -> list[float]:
    problem = make_problem(seed=3, scores=150, hidden=64, vocab_size=990, padded=1000, dtype=dtype)
    hidden = problem.hidden[rows].requires_grad_(keep_gradients)
    logprobs = vocab_parallel_linear_logprobs(
        hidden, _shard(problem), problem.targets[rows], vocab_size=990, tp_group=dist.group.WORLD
    )
    return logprobs.detach().tolist()


def check_bits() -> list[float]:
    """Neither the company nor the position of a score changes its bits, with and without gradients."""
    for dtype in (torch.float32, torch.bfloat16):
        expected = scores_of_subset(list(range(150)), dtype, keep_gradients=True)
        for rows in ([7], list(range(149, 20, -1)), list(range(0, 150, 3))):
            for keep_gradients in (True, False):
                assert scores_of_subset(rows, dtype, keep_gradients) == [expected[row] for row in rows]
    return expected


def check_everything() -> tuple[int, list[float]]:
    """All checks in one start of the ranks."""
    check_borders()
    check_hidden_gradient_parts()
    return check_random_shapes(), check_bits()


@pytest.mark.parametrize(
    "world_size", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_shards_agree_with_dense(world_size):
    results = run_ranks(check_everything, world_size)
    for examples, bits in results:
        assert examples >= 40
        assert bits == results[0][1]
