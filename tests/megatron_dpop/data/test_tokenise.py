"""Tokens of prompt and completion: what is scored, where the boundary is, equal to TRL's."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpop_base.errors import UserError
from megatron_dpop.data.records import BadRowError, Record
from megatron_dpop.data.tokenise import TokenizedRecord, TooLong, common_prefix_tokens, tokenise
from megatron_dpop.data.tokenizer import TextTokenizer, load_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
PAIR = (True, False)
CONVERSATION = (
    {"role": "user", "content": "How many apples?"},
    {"role": "assistant", "content": "12 apples."},
    {"role": "user", "content": "And 3 more?"},
)
SYSTEM = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many?"})
PROMPTS = ("What is 12 + 3?\n", "Each costs $5 — naïve, 数は?", CONVERSATION, SYSTEM)
COMPLETIONS = ("12 + 3 = 15, so the answer is 15.\n#### 15", "12 + 3 = 17, so the answer is 15.\n#### 15")


@cache
def loaded(path: Path, template: str | None = None) -> TextTokenizer:
    """Reading Qwen's files takes seconds."""
    return load_tokenizer(path, template)


@cache
def theirs_loaded(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def one(
    record: Record, tokenizer: TextTokenizer, *, max_tokens: int = 4096, too_long: TooLong = "stop"
) -> TokenizedRecord:
    (result,) = tokenise([record], tokenizer, max_tokens=max_tokens, too_long=too_long)
    if isinstance(result, BadRowError):
        raise result
    assert result is not None
    return result


def trl_pair(folder: Path, template: str | None, prompt: object, tmp_path: Path) -> dict[str, list[int]]:
    """Unpadded token ids and completion masks as TRL's dataset preparation and collator make them."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    tokenizer = theirs_loaded(folder)
    tokenizer.chat_template = template
    if template is None:
        row = {"prompt": prompt, "chosen": COMPLETIONS[0], "rejected": COMPLETIONS[1]}
    else:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        answers = [[{"role": "assistant", "content": text}] for text in COMPLETIONS]
        row = {"prompt": turns, "chosen": answers[0], "rejected": answers[1]}
    config = DPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=None)
    prepare = DPOTrainer._prepare_dataset  # of the trainer it uses nothing but the tokenizer
    data = prepare(SimpleNamespace(_tokenizer=tokenizer), Dataset.from_list([row]), tokenizer, config, "train")
    batch = DataCollatorForPreference(pad_token_id=0)([data[0]])
    kept = batch["attention_mask"].bool()
    return {
        "ids": [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], kept, strict=True)],
        "scored": [
            ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
        ],
    }


# Byte-level tokens by Qwen's real files, SentencePiece's by models of Llama's and Yi's kind. The templates write what
# the published ones of Qwen2.5, Yi, Llama-2 and Mistral-Instruct-v0.2 write; Mistral's refuses a system message.
each_example_and_template = pytest.mark.parametrize(
    ("model", "template", "prompt"),
    [
        pytest.param(model, template, prompt, id=f"{model}-{template}-{name}")
        for model, template in (
            ("qwen", "qwen"),
            ("qwen", "yi"),
            ("yi", "yi"),
            ("llama", "llama2"),
            ("llama", "mistral"),
        )
        for name, prompt in zip(("plain", "unicode", "multi-turn", "system"), PROMPTS, strict=True)
        if not (template == "mistral" and prompt is SYSTEM)
    ],
)


@each_example_and_template
def test_scored_tokens_equal_trl_for_each_template(
    model: str, template: str, prompt: object, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    file = TEMPLATES / f"{template}.jinja"
    ours = one(Record(prompt, COMPLETIONS, PAIR), loaded(folder, str(file)))  # type: ignore[arg-type]
    theirs = trl_pair(folder, file.read_text(), prompt, tmp_path)
    assert [list(c) for c in ours.completions] == theirs["scored"]
    assert [[*ours.prompt, *c] for c in ours.completions] == theirs["ids"]


@pytest.mark.parametrize("model", ["qwen", "llama"])
def test_plain_text_equals_trl_where_no_token_spans_the_boundary(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(model)
    ours = one(Record("How many?\n", COMPLETIONS, PAIR), loaded(folder, "none"))
    theirs = trl_pair(folder, None, "How many?\n", tmp_path)
    assert [list(c) for c in ours.completions] == theirs["scored"]
    assert [[*ours.prompt, *c] for c in ours.completions] == theirs["ids"]


@pytest.mark.slow
def test_smollm2_equals_trl(smollm2: Path, tmp_path: Path) -> None:
    tokenizer = loaded(smollm2)
    for prompt in PROMPTS:
        ours = one(Record(prompt, COMPLETIONS, PAIR), tokenizer)  # type: ignore[arg-type]
        theirs = trl_pair(smollm2, tokenizer.template_for(None).text, prompt, tmp_path)
        assert [list(c) for c in ours.completions] == theirs["scored"]
        assert [[*ours.prompt, *c] for c in ours.completions] == theirs["ids"]


END_OF_TURN = {"qwen": "<|im_end|>\n", "yi": "<|im_end|>\n", "llama2": " </s>", "mistral": "</s>"}


@each_example_and_template
def test_tokens_decode_to_the_text_and_only_the_answer_is_scored(
    model: str, template: str, prompt: object, request: pytest.FixtureRequest
) -> None:
    tokenizer = loaded(request.getfixturevalue(model), str(TEMPLATES / f"{template}.jinja"))
    example = one(Record(prompt, COMPLETIONS, PAIR), tokenizer)  # type: ignore[arg-type]
    messages = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
    asked = tokenizer.template_for(None).render(messages, ask=True)  # type: ignore[arg-type]
    assert tokenizer.decode(example.prompt.tolist()) == asked
    for tokens, answer in zip(example.completions, COMPLETIONS, strict=True):
        whole = tokenizer.decode([*example.prompt.tolist(), *tokens.tolist()])
        assert whole.removeprefix(asked).lstrip(" ") == answer + END_OF_TURN[template]
        assert tokens.tolist().count(tokenizer.end_id) == 1


def test_chat_tokens_decode_to_the_text_and_score_only_the_answer(qwen: Path) -> None:
    tokenizer = loaded(qwen)
    example = one(Record("Hi", ("Yes.", "No."), PAIR), tokenizer)
    assert tokenizer.decode(example.prompt.tolist()) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(c.tolist()) for c in example.completions] == ["Yes.<|im_end|>\n", "No.<|im_end|>\n"]
    assert all(tokenizer.end_id in completion for completion in example.completions)


@pytest.mark.parametrize("model", ["qwen", "llama", "sentencepiece_bare"])
@pytest.mark.parametrize(
    ("prompt", "answers"),
    [
        ("Answer: ", ("yes", "no")),  # the space would join the answer's first word
        ("Answer:", (" yes", " no")),
        ("the ans", ("wer is 1", "wer is 2")),  # a word would be whole only across the boundary
        ("12", ("34", "56")),
        ("a\n", ("\n\nb", "\n c")),
        ("naï", ("ve é", "ve 数")),
    ],
)
def test_boundary_stays_where_generation_has_it(
    model: str, prompt: str, answers: tuple[str, str], request: pytest.FixtureRequest
) -> None:
    tokenizer = loaded(request.getfixturevalue(model), "none")
    example = one(Record(prompt, answers, PAIR), tokenizer)
    alone = [*tokenizer.prefix_ids, *tokenizer.encode([prompt])[0]]
    assert example.prompt.tolist() == alone, "the prompt's tokens are those that generation starts from"
    end = tokenizer.end_text
    for completion, answer in zip(example.completions, answers, strict=True):
        whole = tokenizer.decode([*alone, *completion.tolist()])
        assert whole.removeprefix("<s>").removeprefix(" ") == prompt + answer + end
        assert completion.tolist().count(tokenizer.end_id) == 1
        assert completion[-1] == tokenizer.end_id


def test_special_tokens_occur_once(llama: Path) -> None:
    plain = loaded(llama, "none")
    example = one(Record("<s>How many?", ("yes</s>", "no"), PAIR), plain)
    for completion in example.completions:
        assert [*example.prompt, *completion].count(1) == 1
        assert [*example.prompt, *completion].count(2) == 1
    chat = one(Record("How many?", ("yes", "no"), PAIR), loaded(llama))
    assert [*chat.prompt, *chat.completions[0]].count(1) == 1
    assert [*chat.prompt, *chat.completions[0]].count(2) == 1


def test_sentencepiece_model_read_directly_equals_transformers(llama: Path, sentencepiece_bare: Path) -> None:
    theirs, ours = loaded(llama, "none"), loaded(sentencepiece_bare / "tokenizer.model", "none")
    texts = ["the answer is 12", "two  spaces\n", "数", "<s>[INST] how many [/INST] yes </s>", "</s>no"]
    assert ours.encode(texts) == theirs.encode(texts)
    assert ours.prefix_ids == theirs.prefix_ids == (1,)
    template = str(TEMPLATES / "llama2.jinja")
    record = Record(CONVERSATION, COMPLETIONS, PAIR)
    a, b = (one(record, loaded(folder, template)) for folder in (llama, sentencepiece_bare))
    assert a.prompt.tolist() == b.prompt.tolist()
    assert [c.tolist() for c in a.completions] == [c.tolist() for c in b.completions]


def test_template_that_ends_no_turn_gets_the_end_token(qwen: Path) -> None:
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    example = one(Record("Hi", ("Yes", "No"), PAIR), loaded(qwen, template))
    assert all(completion[-1] == 151645 for completion in example.completions)
    assert any("ends no turn" in event for event in example.events)


def test_template_that_writes_the_prompt_differently_is_reported(qwen: Path) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    tokenizer = loaded(qwen, template)
    example = one(Record("Hi", ("Yes", "No"), PAIR), tokenizer)
    assert tokenizer.decode(example.completions[0].tolist()) == "Yes<|im_end|>"
    assert any("differently" in event for event in example.events)


def test_too_long_is_a_policy(llama: Path) -> None:
    tokenizer = loaded(llama, "none")
    record = Record("the apples " * 20, ("yes", "no"), PAIR)
    whole = one(record, tokenizer)
    total = len(whole.prompt) + max(map(len, whole.completions))
    assert one(record, tokenizer, max_tokens=total).prompt.tolist() == whole.prompt.tolist()
    with pytest.raises(BadRowError, match=f"{total} tokens .* data.max_tokens {total - 1}"):
        one(record, tokenizer, max_tokens=total - 1)
    assert tokenise([record], tokenizer, max_tokens=total - 1, too_long="drop") == [None]
    cut = one(record, tokenizer, max_tokens=20, too_long="truncate_prompt")
    assert len(cut.prompt) + max(map(len, cut.completions)) == 20
    assert cut.prompt[0] == 1, "the first token stays"
    assert cut.prompt[1:].tolist() == whole.prompt[-len(cut.prompt) + 1 :].tolist()
    assert [c.tolist() for c in cut.completions] == [c.tolist() for c in whole.completions]
    assert "prompt truncated" in cut.events
    assert tokenise([record], tokenizer, max_tokens=2, too_long="truncate_prompt") == [None]


def test_template_refusals_and_missing_templates_are_named(llama: Path, sentencepiece_bare: Path, qwen: Path) -> None:
    turns = ({"role": "user", "content": "a"}, {"role": "tool", "content": "b"})
    with pytest.raises(BadRowError, match=r"template refuses.*alternate"):
        one(Record(turns, ("c", "d"), PAIR), loaded(llama))
    with pytest.raises(BadRowError, match=r"template refuses.*Only user and assistant roles"):
        one(Record(SYSTEM, ("c", "d"), PAIR), loaded(llama, str(TEMPLATES / "mistral.jinja")))
    with pytest.raises(BadRowError, match=r"template refuses this conversation: TemplateError"):
        one(Record("a", ("c", "d"), PAIR), loaded(llama, "{{ raise_exception('') }}"))
    with pytest.raises(UserError, match=r"no chat template; set data\.chat_template"):
        loaded(sentencepiece_bare)
    with pytest.raises(UserError, match="no template file"):
        loaded(qwen, "no/such/file.jinja")
    with pytest.raises(UserError, match=r"data\.chat_template: line 1"):
        loaded(qwen, "{% for %}")
    with pytest.raises(BadRowError, match="a conversation, which plain text cannot hold"):
        one(Record(CONVERSATION, COMPLETIONS, PAIR), loaded(qwen, "none"))


def test_completions_that_only_differ_before_tokenising_are_refused(llama: Path) -> None:
    with pytest.raises(BadRowError, match="identical once tokenised"):
        one(Record("how many", ("yes", "yes "), PAIR), loaded(llama))  # Llama-2's template strips


def test_common_prefix() -> None:
    a, b = np.array([1, 2, 3, 4]), np.array([1, 2, 5])
    assert common_prefix_tokens([a, b]) == 2
    assert common_prefix_tokens([a]) == 0
    assert common_prefix_tokens([a, a[:3]]) == 3
    assert common_prefix_tokens([a, b, np.array([9])]) == 0


@given(completions=st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=5), min_size=2, max_size=3))
def test_common_prefix_is_the_longest(completions: list[list[int]]) -> None:
    count = common_prefix_tokens([np.array(completion, dtype=np.int32) for completion in completions])
    assert all(completion[:count] == completions[0][:count] for completion in completions)
    longer = {tuple(completion[: count + 1]) for completion in completions}
    assert len(longer) > 1 or count == min(map(len, completions))
