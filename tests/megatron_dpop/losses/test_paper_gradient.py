"""The DPOP paper's gradients with respect to logits, derived from our code by autograd.

Chosen and rejected differ in one token. At a later position both have the same next token i, but different
contexts, hence different softmaxes s(w) and s(l). The paper differentiates by the logit of token j as one
variable that both contexts share.
"""

import math

import pytest
import torch

from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.registry import make_loss
from tests.megatron_dpop.losses.batches import pair_batch

VOCAB, TOKENS, EDIT = 13, 6, 2
BETA, LAMBDA = 0.3, 50.0


def scaled_gradient(name: str, reference_chosen_shift: float):
    """d(-loss)/d(shared logits) / (beta sigmoid(-z)) [TOKENS, VOCAB], s(w), s(l), and the targets.

    reference_chosen_shift: log of pi(w) / ref(w).
    """
    generator = torch.Generator().manual_seed(7)
    base_w, base_l = torch.randn(2, TOKENS, VOCAB, generator=generator, dtype=torch.float64)
    base_l[: EDIT + 1] = base_w[: EDIT + 1]  # up to and including the edit, both see the same context
    target_w = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    target_l = target_w.clone()
    target_l[EDIT] = (target_w[EDIT] + 1) % VOCAB
    shared = torch.zeros(TOKENS, VOCAB, dtype=torch.float64, requires_grad=True)

    def sequence_logp(base, targets):
        # With the identity as output weight, the hidden states are the logits.
        identity = torch.eye(VOCAB, dtype=torch.float64)
        return vocab_parallel_linear_logprobs(base + shared, identity, targets, vocab_size=VOCAB, tp_group=None).sum()

    logps = torch.stack([sequence_logp(base_w, target_w), sequence_logp(base_l, target_l)])
    reference = logps.detach() - torch.tensor([reference_chosen_shift, 0.5], dtype=torch.float64)
    options = {"lambda": LAMBDA} if name == "dpop" else {}
    output = make_loss({"name": name, "beta": BETA, **options})(
        CompletionBatch(
            logps=logps,
            reference_logps=reference,
            lengths=torch.tensor([TOKENS, TOKENS]),
            example=torch.tensor([0, 0]),
            preferred=torch.tensor([True, False]),
            num_examples=1,
        )
    )
    (gradient,) = torch.autograd.grad(-output.losses.sum(), shared)
    # -loss = log sigmoid(z), whose derivative by z is 1 - sigmoid(z) = 1 - exp(-loss).
    slope = BETA * -torch.expm1(-output.losses.detach())
    return gradient / slope, base_w.softmax(-1), base_l.softmax(-1), target_w


def test_dpo_after_the_edit_moves_every_logit_by_the_difference_of_softmaxes():
    gradient, softmax_w, softmax_l, _ = scaled_gradient("dpo", reference_chosen_shift=-0.2)
    expected = softmax_l - softmax_w
    torch.testing.assert_close(gradient[EDIT + 1 :], expected[EDIT + 1 :], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["dpo", "dpop"])
def test_before_the_edit_only_the_penalty_acts(name):
    """Same context, same target: DPO's terms cancel; DPOP while active raises the chosen tokens."""
    gradient, softmax_w, _, target = scaled_gradient(name, reference_chosen_shift=-0.2)
    raise_target = torch.nn.functional.one_hot(target, VOCAB) - softmax_w
    expected = LAMBDA * raise_target if name == "dpop" else torch.zeros_like(raise_target)
    torch.testing.assert_close(gradient[:EDIT], expected[:EDIT], rtol=1e-9, atol=1e-12)


def test_dpop_below_the_reference_pulls_the_target_up():
    gradient, softmax_w, softmax_l, target = scaled_gradient("dpop", reference_chosen_shift=-0.2)
    for position in range(EDIT + 1, TOKENS):
        for token in range(VOCAB):
            w, l = softmax_w[position, token].item(), softmax_l[position, token].item()  # noqa: E741
            expected = LAMBDA * (1 - w) + l - w if token == target[position] else l - (LAMBDA + 1) * w
            assert gradient[position, token].item() == pytest.approx(expected, rel=1e-9)
    rows = torch.arange(EDIT + 1, TOKENS)
    assert (gradient[rows, target[rows]] > 0).all()


def test_dpop_above_the_reference_is_dpo():
    dpop, dpo = (scaled_gradient(name, reference_chosen_shift=0.2)[0] for name in ("dpop", "dpo"))
    torch.testing.assert_close(dpop, dpo, rtol=0, atol=0)


@pytest.mark.parametrize("distance", [38.0, 41.5])
def test_dpop_is_a_contrastive_loss_whose_margin_is_the_references_distance(distance):
    """Appendix C: distances -log pi, margins log(1 / ref); beyond its margin of 40 the chosen answer is pulled more."""
    margin, rejected, rejected_margin = 40.0, 45.0, 43.5
    batch = pair_batch([-distance], [-rejected], [-margin], [-rejected_margin], dtype=torch.float64)
    output = make_loss({"name": "dpop", "beta": BETA, "lambda": 2.0})(batch)
    pulled = (margin - distance) - 2.0 * max(0.0, distance - margin)
    z = BETA * (pulled - (rejected_margin - rejected))
    assert output.losses.item() == pytest.approx(math.log1p(math.exp(-z)), rel=1e-12)
    assert output.metrics["dpop/reward"].item() == pytest.approx(BETA * pulled, rel=1e-12)
    (gradient,) = torch.autograd.grad(-output.losses.sum(), batch.logps)
    push = BETA / (1 + math.exp(z))
    assert gradient.tolist() == pytest.approx([push * (3.0 if distance > margin else 1.0), -push], rel=1e-12)
