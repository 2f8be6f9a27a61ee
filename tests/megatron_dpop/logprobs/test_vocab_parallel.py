"""The output layer's log-probabilities on one rank, against float64 on materialised logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dpop.logprobs.chunking import Chunking, default_chunking
from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs, vocab_parallel_linear_scores
from tests.megatron_dpop.logprobs.dense import Problem, dense_scores, logprob_error, make_problem, relative_error

SMALL = Chunking(tokens=16, vocab=24, row_tile=8)


def logprobs_of(problem: Problem, hidden=None, weight=None, chunking=SMALL):
    return vocab_parallel_linear_logprobs(
        problem.hidden if hidden is None else hidden,
        problem.weight if weight is None else weight,
        problem.targets,
        vocab_size=problem.vocab_size,
        tp_group=None,
        chunking=chunking,
    )


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scores=st.integers(0, 70),
    hidden=st.integers(1, 48),
    vocab_size=st.integers(1, 130),
    padding=st.integers(0, 40),
    tile=st.sampled_from([1, 4, 8]),
    tiles=st.integers(1, 5),
    vocab_block=st.integers(1, 150),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_values_and_gradients_match_dense(seed, scores, hidden, vocab_size, padding, tile, tiles, vocab_block, dtype):
    problem = make_problem(
        seed=seed, scores=scores, hidden=hidden, vocab_size=vocab_size, padded=vocab_size + padding, dtype=dtype
    )
    expected = dense_scores(problem)
    inputs = [tensor.clone().requires_grad_() for tensor in (problem.hidden, problem.weight)]
    scored = vocab_parallel_linear_scores(
        *inputs,
        problem.targets,
        vocab_size=vocab_size,
        tp_group=None,
        entropy=True,
        chunking=Chunking(tokens=tile * tiles, vocab=vocab_block, row_tile=tile),
    )
    assert scored.logprobs.dtype == dtype
    assert scored.entropy is not None
    (scored.logprobs * problem.upstream.to(dtype)).sum().backward()
    value, gradient = (1e-6, 1e-5) if dtype == torch.float32 else (1e-13, 1e-12)
    assert logprob_error(scored.logprobs.detach(), expected.logprobs) < value
    assert relative_error(inputs[0].grad, expected.hidden_grad) < gradient
    assert relative_error(inputs[1].grad, expected.weight_grad) < gradient
    assert relative_error(scored.entropy, expected.entropy) < 3 * value
    assert torch.equal(inputs[1].grad[vocab_size:], torch.zeros_like(inputs[1].grad[vocab_size:]))
    # A tie within rounding may be called either way; random logits do not tie in float64.
    if dtype == torch.float64:
        assert torch.equal(scored.is_top1, expected.is_top1)


def test_gradcheck():
    problem = make_problem(seed=1, scores=11, hidden=5, vocab_size=29, padded=32, dtype=torch.float64)
    inputs = (problem.hidden.requires_grad_(), problem.weight.requires_grad_())
    chunking = Chunking(tokens=4, vocab=8, row_tile=2)
    assert torch.autograd.gradcheck(lambda h, w: logprobs_of(problem, h, w, chunking), inputs)


def test_bf16_inputs_keep_fp32_accuracy():
    """Large logits: the error stays that of fp32, where logits rounded to bf16 would be off by 0.01 nats."""
    problem = make_problem(
        seed=2, scores=200, hidden=576, vocab_size=4000, padded=4096, dtype=torch.bfloat16, scale=6.0
    )
    expected = dense_scores(problem)
    actual = logprobs_of(problem, chunking=None)
    assert actual.dtype == torch.float32
    assert relative_error(actual, expected.logprobs) < 1e-6
    rounded = (problem.hidden @ problem.weight[:4000].t()).float().log_softmax(-1)
    rounded = rounded.gather(1, problem.targets[:, None]).squeeze(1)
    assert (rounded - expected.logprobs).abs().mean() > 1e-2


@pytest.mark.parametrize("low", [-1e4, -1e30, float("-inf")])
def test_logits_near_minus_infinity(low):
    """Whole blocks of the vocabulary at -inf, before and after the finite ones."""
    logits = torch.randn(9, 60, dtype=torch.float64).float()
    logits[:, :30] = low
    logits[:4, 50:] = low
    problem = Problem(
        hidden=torch.cat([logits], 1),
        weight=torch.eye(60),
        targets=torch.randint(30, 50, (9,)),
        upstream=torch.ones(9),
        vocab_size=60,
    )
    if low == float("-inf"):  # -inf * 0 in the product is NaN: put the infinity where the product is one term
        problem = Problem(torch.ones(9, 1), logits[:1].t().contiguous(), problem.targets, problem.upstream, 60)
        logits = logits[:1].expand(9, 60)
    weight = problem.weight.clone().requires_grad_()
    hidden = problem.hidden.clone().requires_grad_()
    for block in (1, 7, 10, 60):
        actual = logprobs_of(problem, hidden, weight, Chunking(tokens=8, vocab=block, row_tile=4))
        expected = logits.double().log_softmax(-1).gather(1, problem.targets[:, None]).squeeze(1)
        assert relative_error(actual.detach(), expected) < 1e-6
        if low != float("-inf"):
            (gradient,) = torch.autograd.grad(actual.sum(), hidden)
            assert gradient.isfinite().all()
    scored = vocab_parallel_linear_scores(
        hidden, weight, problem.targets, vocab_size=60, tp_group=None, entropy=True, chunking=SMALL
    )
    assert scored.entropy is not None
    assert scored.entropy.isfinite().all()


def test_improbable_target_has_its_full_gradient():
    hidden = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    actual = vocab_parallel_linear_logprobs(
        hidden, torch.eye(3), torch.tensor([0]), vocab_size=3, tp_group=None, chunking=SMALL
    )
    actual.sum().backward()
    assert actual.item() == -200.0
    assert torch.equal(hidden.grad, torch.tensor([[1.0, -1.0, 0.0]]))


@pytest.mark.parametrize("scores", [0, 1])
def test_one_score_and_none(scores):
    problem = make_problem(seed=3, scores=scores, hidden=8, vocab_size=40, padded=48, dtype=torch.float32)
    hidden, weight = problem.hidden.requires_grad_(), problem.weight.requires_grad_()
    actual = logprobs_of(problem, hidden, weight)
    assert actual.shape == (scores,)
    assert actual.requires_grad
    actual.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (scores, 8)
    assert weight.grad is not None
    assert bool(weight.grad.any()) == bool(scores)


def test_padding_takes_no_probability():
    problem = make_problem(seed=4, scores=1, hidden=8, vocab_size=37, padded=64, dtype=torch.float64)
    problem.weight[37:] = float("nan")
    everything = Problem(problem.hidden.expand(37, 8), problem.weight, torch.arange(37), torch.ones(37), vocab_size=37)
    assert logprobs_of(everything).exp().sum().item() == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("target", [-1, 40])
def test_target_outside_the_vocabulary_is_refused(target):
    with pytest.raises(RuntimeError, match="target out of vocabulary"):
        vocab_parallel_linear_logprobs(
            torch.randn(1, 4), torch.randn(48, 4), torch.tensor([target]), vocab_size=40, tp_group=None
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_gradients_order_or_company(dtype, threads):
    """What lets policy and reference agree to the last bit although they were packed differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        problem = make_problem(seed=5, scores=700, hidden=192, vocab_size=2000, padded=2048, dtype=dtype)

        def of(rows):
            return vocab_parallel_linear_logprobs(
                problem.hidden[rows], problem.weight, problem.targets[rows], vocab_size=2000, tp_group=None
            )

        everything = torch.arange(700)
        expected = of(everything)
        problem.hidden.requires_grad_()
        assert torch.equal(of(everything).detach(), expected)
        for count in (1, 3, 63, 64, 65, 300, 513):
            rows = torch.randperm(700)[:count]
            assert torch.equal(of(rows).detach(), expected[rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("main_grad_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradient_accumulates_in_main_grad(dtype, main_grad_dtype):
    """Two micro-batches add up in place; autograd gets zeros, and Megatron's flag is set."""
    problem = make_problem(seed=6, scores=90, hidden=16, vocab_size=60, padded=64, dtype=dtype)
    expected = dense_scores(problem).weight_grad
    weight = torch.nn.Parameter(problem.weight)
    weight.main_grad = torch.full((64, 16), 0.5, dtype=main_grad_dtype)
    weight.grad_added_to_main_grad = False
    for _ in range(2):
        (logprobs_of(problem, weight=weight) * problem.upstream.float()).sum().backward()
    assert weight.grad_added_to_main_grad is True
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    tolerance = 1e-5 if main_grad_dtype == torch.float32 else 1e-2
    assert relative_error(weight.main_grad, 0.5 + 2 * expected) < tolerance


def test_main_grad_without_megatrons_ddp_leaves_no_ordinary_gradient():
    problem = make_problem(seed=6, scores=9, hidden=16, vocab_size=60, padded=64, dtype=torch.float64)
    weight = torch.nn.Parameter(problem.weight)
    weight.main_grad = torch.zeros(64, 16, dtype=torch.float64)
    (logprobs_of(problem, weight=weight) * problem.upstream).sum().backward()
    assert weight.grad is None
    assert relative_error(weight.main_grad, dense_scores(problem).weight_grad) < 1e-12


def test_weight_gradient_is_rounded_to_bf16_once():
    problem = make_problem(seed=7, scores=400, hidden=16, vocab_size=60, padded=64, dtype=torch.bfloat16)
    expected = dense_scores(problem).weight_grad
    weight = problem.weight.clone().requires_grad_()
    (logprobs_of(problem, weight=weight) * problem.upstream.float()).sum().backward()
    error = (weight.grad.double() - expected).abs()
    assert (error <= expected.abs() * 2**-8 + 1e-5 * expected.abs().max()).all()


def test_tied_embedding_gets_both_gradients():
    """main_grad takes the output layer's part, autograd's gradient is the embedding's part alone."""
    problem = make_problem(seed=8, scores=30, hidden=16, vocab_size=64, padded=64, dtype=torch.float64)
    tokens = torch.randint(0, 64, (30,))
    dense = problem.weight.clone().requires_grad_()
    log_softmax = (dense[tokens] @ dense.t()).log_softmax(-1)
    log_softmax.gather(1, problem.targets[:, None]).sum().backward()

    weight = torch.nn.Parameter(problem.weight)
    weight.main_grad = torch.zeros(64, 16, dtype=torch.float64)
    weight.grad_added_to_main_grad = False
    hidden = torch.nn.functional.embedding(tokens, weight)
    logprobs_of(problem, hidden, weight).sum().backward()
    assert relative_error(weight.main_grad + weight.grad, dense.grad) < 1e-12
    assert relative_error(weight.main_grad, dense.grad) > 1e-2


def test_frozen_inputs_get_no_gradient():
    problem = make_problem(seed=9, scores=20, hidden=8, vocab_size=30, padded=32, dtype=torch.float64)
    expected = dense_scores(problem)
    hidden = problem.hidden.clone().requires_grad_()
    (logprobs_of(problem, hidden) * problem.upstream).sum().backward()
    assert relative_error(hidden.grad, expected.hidden_grad) < 1e-12
    assert problem.weight.grad is None
    weight = problem.weight.clone().requires_grad_()
    (logprobs_of(problem, weight=weight) * problem.upstream).sum().backward()
    assert relative_error(weight.grad, expected.weight_grad) < 1e-12
    assert problem.hidden.grad is None


def test_nan_reaches_its_score_and_no_other():
    problem = make_problem(seed=10, scores=20, hidden=8, vocab_size=60, padded=64, dtype=torch.float32)
    problem.hidden[7, 3] = float("nan")
    assert logprobs_of(problem).isnan().nonzero().flatten().tolist() == [7]
    problem.weight[41, 0] = float("nan")
    assert logprobs_of(problem).isnan().all()


def test_default_tiles_differ_by_device(monkeypatch):
    sizes = [default_chunking(torch.device("cpu")).vocab]
    for capability in ((8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        sizes.append(default_chunking(torch.device("cuda")).vocab)
    assert sizes == [512, 2048, 4096]
    with pytest.raises(ValueError, match="row_tile"):
        Chunking(tokens=100, vocab=10, row_tile=64)
