"""Losses and rewards of TRL's own trainers and ours, on one model and one batch."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.kto import kl_estimate
from megatron_dpop.losses.registry import make_loss
from megatron_dpop.rows.row import TokenWeights
from tests.megatron_dpop.losses.batches import random_pairs

trl = pytest.importorskip("trl")

VOCAB = 64
BETA = 0.3
PROMPTS = ["w3 w4 w5", "w6 w7", "w8 w9 w10 w11"]
CHOSEN = ["w12 w13 w14 w15", "w16 w17", "w18 w19 w20"]
REJECTED = ["w12 w21 w14 w15", "w16 w22 w23 w24 w25", "w18"]
PAIR_METRICS = (
    *("logps/chosen", "logps/rejected"),
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2, **{f"w{index}": index for index in range(3, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).float()


def arguments(tmp_path) -> dict:
    return {
        "output_dir": str(tmp_path),
        "beta": BETA,
        "per_device_train_batch_size": len(PROMPTS),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }


def our_logps(
    model, input_ids, attention_mask, completion_mask, *, tail: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence log-probabilities [sequences] and lengths, through our output layer; `tail` as rows weigh tokens."""
    hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    scored = completion_mask[:, 1:].bool()
    logps = vocab_parallel_linear_logprobs(
        hidden[:, :-1][scored], model.lm_head.weight, input_ids[:, 1:][scored], vocab_size=VOCAB, tp_group=None
    )
    sequence = torch.arange(len(input_ids))[:, None].expand_as(scored)[scored]
    lengths = scored.sum(1)
    if tail != 1:
        shortest = torch.minimum(*lengths.chunk(2)).repeat(2)
        weights = [
            TokenWeights(tail=tail).of_tokens(0, tokens, shortest=least)
            for tokens, least in zip(lengths.tolist(), shortest.tolist(), strict=True)
        ]
        logps = logps * torch.from_numpy(np.concatenate(weights))
    return logps.new_zeros(len(input_ids)).index_add(0, sequence, logps), lengths


def interleave(values: torch.Tensor) -> torch.Tensor:
    """[chosen..., rejected...] -> [chosen, rejected, chosen, rejected, ...]."""
    return torch.stack(values.chunk(2)).t().reshape(-1)


@pytest.fixture(scope="module")
def dpo_step(tmp_path_factory, tokenizer):
    """TRL's trainer with one batch, and our log-probabilities of the same models and batch."""
    model, reference = tiny_llama(1), tiny_llama(2)
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(**arguments(tmp_path_factory.mktemp("dpo"))),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}),
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    columns = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    policy_model = trainer.accelerator.unwrap_model(trainer.model)

    def batch(tail: float = 1.0) -> CompletionBatch:
        policy_logps, lengths = our_logps(policy_model, *columns, tail=tail)
        with torch.no_grad():
            reference_logps, _ = our_logps(reference, *columns, tail=tail)
        pairs = len(PROMPTS)
        return CompletionBatch(
            logps=interleave(policy_logps),
            reference_logps=interleave(reference_logps),
            lengths=interleave(lengths),
            example=torch.arange(pairs).repeat_interleave(2),
            preferred=torch.tensor([True, False] * pairs),
            num_examples=pairs,
        )

    return trainer, inputs, batch, list(policy_model.parameters())


SUM = {
    "name": "sum",
    "terms": [{"name": "dpo", "weight": 0.8, "beta": BETA}, {"name": "bco", "weight": 0.2, "beta": BETA}],
}


@pytest.mark.parametrize(
    ("trl_losses", "section", "settings"),
    [
        (["sigmoid"], {"name": "dpo", "beta": BETA}, {}),
        (["sigmoid_norm"], {"name": "dpo", "beta": BETA, "average": "tokens"}, {}),
        (["ipo"], {"name": "ipo", "beta": BETA, "reduction": "mean"}, {}),
        (["hinge"], {"name": "hinge", "beta": BETA}, {}),
        (["robust"], {"name": "robust", "beta": BETA, "label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        (["exo_pair"], {"name": "exo", "beta": BETA, "label_smoothing": 1e-3}, {"label_smoothing": 1e-3}),
        (["discopop"], {"name": "discopop", "beta": BETA, "tau": 0.05}, {}),
        (["apo_zero"], {"name": "apo_zero", "beta": BETA}, {}),
        (["apo_down"], {"name": "apo_down", "beta": BETA}, {}),
        (["nca_pair"], {"name": "nca", "beta": BETA}, {}),
        (["bco_pair"], {"name": "bco", "beta": BETA}, {}),
        (["sppo_hard"], {"name": "sppo_hard", "beta": BETA}, {}),
        (["sigmoid"], {"name": "dpo", "beta": BETA, "ld_alpha": 0.4}, {"ld_alpha": 0.4}),
        (["sigmoid", "bco_pair"], SUM, {"loss_weights": [0.8, 0.2]}),
    ],
)
def test_pair_losses_equal_trls(dpo_step, monkeypatch, trl_losses, section, settings):
    trainer, inputs, batch, parameters = dpo_step
    for name, value in {"loss_types": trl_losses, "loss_weights": [1.0], **settings}.items():
        monkeypatch.setattr(trainer, name, value)
    expected = trainer.compute_loss(trainer.model, inputs)
    metrics = trainer._metrics["train"]
    loss = make_loss(section)
    output = loss(batch(loss.tail_weight))
    assert output.losses.mean().item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)
    for name in PAIR_METRICS:
        assert output.metrics[name].mean().item() == pytest.approx(metrics[name][-1], rel=1e-5), name
    ours = torch.autograd.grad(output.losses.mean(), parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=2e-6 * float(wanted.abs().max()))


def test_nll_weight_is_trls_second_term_of_one_pair(dpo_step, monkeypatch):
    """With several pairs TRL's mean is over all their tokens, so the pairs are compared one at a time."""
    trainer, inputs, batch, _ = dpo_step
    monkeypatch.setattr(trainer, "loss_types", ["sigmoid", "sft"])
    monkeypatch.setattr(trainer, "loss_weights", [1.0, 0.2])
    ours = make_loss({"name": "dpo", "beta": BETA, "nll_weight": 0.2})(batch())
    for pair in range(len(PROMPTS)):
        rows = torch.tensor([pair, pair + len(PROMPTS)])
        one = {name: value[rows] if torch.is_tensor(value) else value for name, value in inputs.items()}
        expected = trainer.compute_loss(trainer.model, one)
        assert ours.losses[pair].item() == pytest.approx(expected.item(), rel=1e-6)


def cpo_trainer(trainer_class, config_class, tmp_path, tokenizer, **settings):
    """A trainer of TRL's that needs no reference, and TRL's averages of log-probabilities."""
    return trainer_class(
        model=tiny_llama(1),
        args=config_class(**arguments(tmp_path), max_length=64, **settings),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED}),
        processing_class=tokenizer,
    )


def averages() -> tuple[CompletionBatch, torch.Tensor, torch.Tensor]:
    """Sums of log-probabilities of three pairs and their averages, chosen and rejected, each [pairs]."""
    batch = random_pairs(3, seed=8, dtype=torch.float32)
    means = batch.logps / batch.lengths
    return batch, means[batch.preferred], means[~batch.preferred]


def test_simpo_equals_trls(tmp_path, tokenizer):
    cpo = pytest.importorskip("trl.experimental.cpo")
    trainer = cpo_trainer(cpo.CPOTrainer, cpo.CPOConfig, tmp_path, tokenizer, loss_type="simpo", simpo_gamma=0.7)
    batch, chosen, rejected = averages()
    expected, rewards, _ = trainer.cpo_loss(chosen, rejected)
    output = make_loss({"name": "simpo", "beta": BETA, "gamma": 0.7})(batch)
    torch.testing.assert_close(output.losses, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(output.metrics["rewards/chosen"], rewards.detach(), rtol=1e-6, atol=1e-6)
    ours, theirs = (
        torch.autograd.grad(loss.sum(), batch.logps, retain_graph=True)[0] for loss in (output.losses, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_orpo_equals_trls(tmp_path, tokenizer):
    orpo = pytest.importorskip("trl.experimental.orpo")
    trainer = cpo_trainer(orpo.ORPOTrainer, orpo.ORPOConfig, tmp_path, tokenizer)
    batch, chosen, rejected = averages()
    expected = -chosen - trainer.odds_ratio_loss(chosen, rejected)[0]
    losses = make_loss({"name": "orpo", "beta": BETA})(batch).losses
    torch.testing.assert_close(losses, expected, rtol=1e-6, atol=1e-6)
    ours, theirs = (torch.autograd.grad(loss.sum(), batch.logps, retain_graph=True)[0] for loss in (losses, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_kto_equals_trls(tmp_path, tokenizer):
    model, reference = tiny_llama(4), tiny_llama(3)
    dataset = Dataset.from_dict({"prompt": PROMPTS, "completion": CHOSEN, "label": [True, False, True]})
    trainer = trl.KTOTrainer(
        model=model,
        ref_model=reference,
        args=trl.KTOConfig(desirable_weight=1.5, undesirable_weight=0.5, **arguments(tmp_path)),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, inputs)
    metrics = trainer._metrics["train"]

    def both(prefix: str):
        columns = [inputs[prefix + name] for name in ("input_ids", "attention_mask", "completion_mask")]
        policy, lengths = our_logps(trainer.accelerator.unwrap_model(trainer.model), *columns)
        with torch.no_grad():
            return policy, our_logps(reference, *columns)[0], lengths

    mismatched_policy, mismatched_reference, _ = both("KL_")
    policy_logps, reference_logps, lengths = both("")
    kl = kl_estimate(mismatched_policy - mismatched_reference, None)
    output = make_loss({"name": "kto", "beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.5})(
        CompletionBatch(
            logps=policy_logps,
            reference_logps=reference_logps,
            lengths=lengths,
            example=torch.arange(3),
            preferred=torch.as_tensor(inputs["label"]).bool(),
            num_examples=3,
        ),
        kl=kl,
    )
    assert kl.item() > 0.1  # not the clamp
    assert kl.item() == pytest.approx(metrics["kl"][-1], rel=1e-5)
    assert output.losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        assert output.metrics[name].mean().item() == pytest.approx(metrics[name][-1], rel=1e-5), name
