"""Losses and rewards of TRL's own trainers and ours, on one model and one batch."""

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from megatron_dpop.logprobs.vocab_parallel import vocab_parallel_linear_logprobs
from megatron_dpop.losses.contract import CompletionBatch
from megatron_dpop.losses.kto import kl_estimate
from megatron_dpop.losses.registry import build_loss

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


def our_logps(model, input_ids, attention_mask, completion_mask) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequence log-probabilities [sequences] and lengths, through our output layer."""
    hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
    scored = completion_mask[:, 1:].bool()
    logps = vocab_parallel_linear_logprobs(
        hidden[:, :-1][scored], model.lm_head.weight, input_ids[:, 1:][scored], vocab_size=VOCAB, tp_group=None
    )
    sequence = torch.arange(len(input_ids))[:, None].expand_as(scored)[scored]
    return logps.new_zeros(len(input_ids)).index_add(0, sequence, logps), scored.sum(1)


def interleave(values: torch.Tensor) -> torch.Tensor:
    """[chosen..., rejected...] -> [chosen, rejected, chosen, rejected, ...]."""
    return torch.stack(values.chunk(2)).t().reshape(-1)


@pytest.mark.parametrize(
    ("trl_loss", "section"),
    [
        ("sigmoid", {"name": "dpo"}),
        ("ipo", {"name": "ipo", "reduction": "mean"}),
        ("hinge", {"name": "hinge"}),
    ],
)
def test_pair_losses_equal_trls(tmp_path, tokenizer, trl_loss, section):
    model, reference = tiny_llama(1), tiny_llama(2)
    dataset = Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(loss_type=[trl_loss], **arguments(tmp_path)),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    expected = trainer.compute_loss(trainer.model, inputs)
    metrics = trainer._metrics["train"]

    columns = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    policy_model = trainer.accelerator.unwrap_model(trainer.model)
    policy_logps, lengths = our_logps(policy_model, *columns)
    with torch.no_grad():
        reference_logps, _ = our_logps(reference, *columns)
    pairs = len(PROMPTS)
    output = build_loss({**section, "beta": BETA})(
        CompletionBatch(
            logps=interleave(policy_logps),
            reference_logps=interleave(reference_logps),
            lengths=interleave(lengths),
            example=torch.arange(pairs).repeat_interleave(2),
            preferred=torch.tensor([True, False] * pairs),
            num_examples=pairs,
        )
    )
    assert output.losses.mean().item() == pytest.approx(expected.item(), rel=1e-5)
    for name in PAIR_METRICS:
        assert output.metrics[name].mean().item() == pytest.approx(metrics[name][-1], rel=1e-5), name

    parameters = list(policy_model.parameters())
    ours = torch.autograd.grad(output.losses.mean(), parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for actual, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


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
    output = build_loss({"name": "kto", "beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.5})(
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
