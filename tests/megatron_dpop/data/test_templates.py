"""Chat templates of published models: what reaches them, what they leave out, and that all equals TRL's."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpop_base.errors import UserError
from megatron_dpop.data import templates
from megatron_dpop.data.records import (
    BadRowError,
    Record,
    answer_of,
    check_record,
    messages_of,
    template_kwargs_of,
    tools_of,
)
from megatron_dpop.data.templates import PromptFormat
from megatron_dpop.data.tokenise import TokenizedRecord, tokenise
from megatron_dpop.data.tokenizer import TextTokenizer, load_tokenizer, tokenizer_fingerprint
from tests.megatron_dpop.data.peers import PUBLISHED, byte_tokenizer, trl_pairs

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city"}},
            "required": ["city"],
        },
    },
}
QUESTION = {"role": "user", "content": "Weather in Bern?"}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "12 C, rain"}


def says(content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", **({} if content is None else {"content": content}), **more}


def calls(city: str, *, as_text: bool = False) -> list[dict[str, Any]]:
    arguments: Any = {"city": city}
    arguments = json.dumps(arguments) if as_text else arguments
    return [{"id": "call00001", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}]


def pair(chosen: Any, rejected: Any, *prompt: dict[str, Any], **columns: Any) -> dict[str, Any]:
    sides = {
        name: [says(side)] if isinstance(side, str) else side
        for name, side in (("chosen", chosen), ("rejected", rejected))
    }
    return {"prompt": list(prompt or (QUESTION,)), **sides, **columns}


ROWS = {
    "plain": pair("Rain.", "Sun — naïve, 数"),
    "system": pair("Rain.", "Sun.", {"role": "system", "content": "Be brief."}, QUESTION),
    "turns": pair("Rain.", "Sun.", {"role": "user", "content": "Hi"}, says("Hello!"), QUESTION),
    "tools": pair("12 C.", "Sun.", QUESTION, says("I look.", tool_calls=calls("Bern")), RESULT, tools=[TOOL]),
    "call": pair([says("", tool_calls=calls("Bern"))], "It is sunny.", tools=[TOOL]),
    "call without content": pair([says(tool_calls=calls("Bern"))], "It is sunny.", tools=json.dumps([TOOL])),
    "arguments as text": pair(
        *([says("", tool_calls=calls(city, as_text=True))] for city in ("Bern", "Berlin")), tools=[TOOL]
    ),
    "reasoning": pair(*([says("Rain.", reasoning_content=why)] for why in ("It is autumn.", "I guess."))),
    "reasoning in content": pair("<think>\nIt is autumn.\n</think>\n\nRain.", "<think>\nHm.\n</think>\n\nSun."),
    "arguments of the template": pair("Rain.", "Sun.", chat_template_kwargs={"enable_thinking": False}),
    "several turns": pair([says("Rain."), QUESTION, says("Still rain.")], [says("Sun."), QUESTION, says("Rain.")]),
    "agent": pair([says("", tool_calls=calls("Bern")), RESULT, says("Rain.")], "Sun.", tools=[TOOL]),
}
# A family each, in the version that its models have; how many of the rows above it takes.
FAMILIES = {
    "cohere2": 8,
    "deepseek_r1_distill": 9,
    "deepseekv3": 7,
    "gemma": 7,
    "gemma3": 8,
    "gemma4": 11,
    "gptoss": 12,
    "lfm2": 9,
    "llama3": 10,
    "llama3_2": 11,
    "nemotron_3_nano": 11,
    "phi3": 9,
    "qwen2_5": 11,
    "qwen3": 12,
    "qwen3_5_think": 11,
    "qwen3_training": 12,
}


def record_of(row: dict[str, Any]) -> Record:
    names = ("chosen", "rejected")
    answers = tuple(answer_of(messages_of(row[name], name)) for name in names)
    tools, arguments = tools_of(row.get("tools")), template_kwargs_of(row.get("chat_template_kwargs"))
    prompt = messages_of(row["prompt"], "prompt")
    return check_record(Record(prompt, answers, (True, False), tools=tools, template_kwargs=arguments), names)


def one(row: dict[str, Any] | Record, tokenizer: TextTokenizer) -> TokenizedRecord:
    record = row if isinstance(row, Record) else record_of(row)
    (result,) = tokenise([record], tokenizer, max_tokens=100_000, too_long="stop")
    if isinstance(result, BadRowError):
        raise result
    assert result is not None
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_scored_tokens_equal_trl_s(family: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = byte_tokenizer(tmp_path / "tokenizer", (PUBLISHED / f"{family}.jinja").read_text())
    found = tokenise(list(map(record_of, ROWS.values())), load_tokenizer(folder), max_tokens=100_000, too_long="stop")
    ours = {name: example for name, example in zip(ROWS, found, strict=True) if isinstance(example, TokenizedRecord)}
    theirs = trl_pairs(AutoTokenizer.from_pretrained(folder), [ROWS[name] for name in ours], tmp_path)
    assert len(ours) == FAMILIES[family]
    for (name, example), expected in zip(ours.items(), theirs, strict=True):
        assert [list(c) for c in example.completions] == expected["scored"], name
        assert [[*example.prompt, *c] for c in example.completions] == expected["ids"], name


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
DATED = "{{ 'Today is ' + strftime_now('%d %B %Y') + '.\n' }}" + CHATML


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., TextTokenizer]:
    """A tokenizer for a template."""

    def make(template: str, **form: Any) -> TextTokenizer:
        return load_tokenizer(byte_tokenizer(tmp_path / "made", template), PromptFormat(**form))

    return make


def text(example: TokenizedRecord, tokenizer: TextTokenizer, side: int = 0) -> str:
    return tokenizer.decode([*example.prompt.tolist(), *example.completions[side].tolist()])


def test_a_template_is_told_the_run_s_date_and_no_other(made: Callable[..., TextTokenizer]) -> None:
    for date, words in (("2001-02-03", "03 February 2001"), ("1999-12-31T10:00", "31 December 1999")):
        tokenizer = made(DATED, date=date)
        assert text(one(ROWS["plain"], tokenizer), tokenizer).startswith(f"Today is {words}.")
    first, second = made(DATED, date="2001-02-03"), made(DATED, date="2002-02-03")
    assert "2001" in text(one(ROWS["plain"], first), first), "another object with another date changes nothing"
    assert "2002" in text(one(ROWS["plain"], second), second)


def test_a_template_draws_the_same_by_chance_each_time(made: Callable[..., TextTokenizer]) -> None:
    tokenizer = made("{{ range(100000) | list | random }} " + CHATML)
    assert len({text(one(ROWS["plain"], tokenizer), tokenizer) for _ in range(5)}) == 1
    with pytest.raises(BadRowError, match=r"lipsum\(\) writes other text"):
        one(ROWS["plain"], made("{{ lipsum() }}" + CHATML))


@pytest.mark.parametrize("place", ["own", "given", "file", "additional"])
def test_tokens_have_another_key_on_another_day_where_the_template_asks_for_it(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keys(template: str) -> list[str]:
        folder = byte_tokenizer(tmp_path / "tokenizer", template if place == "own" else CHATML)
        given = {"own": None, "given": template, "additional": "dated", "file": str(tmp_path / "t.jinja")}[place]
        (tmp_path / "t.jinja").write_text(template)
        if place == "additional":
            (folder / "additional_chat_templates").mkdir()
            (folder / "additional_chat_templates" / "dated.jinja").write_text(template)
        found = [tokenizer_fingerprint(folder, PromptFormat(given, date=date)) for date in ("2026-11-26", "2026-11-27")]
        for day in (26, 27):
            monkeypatch.setattr(templates, "today", lambda day=day: datetime.date(2026, 11, day).isoformat())
            found.append(tokenizer_fingerprint(folder, given))
        return found

    asked = keys(DATED)
    assert asked[0] == asked[2] != asked[1] == asked[3]
    assert len(set(keys(CHATML))) == 1


def test_the_key_of_tokens_names_arguments_and_what_surrounds_plain_text(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer", CHATML)
    forms = [
        PromptFormat(),
        PromptFormat(arguments={"a": 1}),
        PromptFormat("none"),
        PromptFormat("none", prefix="x"),
        PromptFormat("none", separator="x"),
    ]
    assert len({tokenizer_fingerprint(folder, form) for form in forms}) == len(forms)


def test_named_templates_are_chosen_as_transformers_chooses_them(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer", CHATML)
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "other"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(name + ": " + CHATML)
    own, other = load_tokenizer(folder), load_tokenizer(folder, "other")
    assert text(one(ROWS["plain"], own), own).startswith("<|im_start|>")
    assert text(one(ROWS["plain"] | {"tools": [TOOL]}, own), own).startswith("tool_use: ")
    assert text(one(ROWS["plain"] | {"tools": [TOOL]}, other), other).startswith("other: ")
    with pytest.raises(UserError, match=r"'mine' is no template file.*the tokenizer has default, other, tool_use"):
        load_tokenizer(folder, "mine")
    (folder / "additional_chat_templates" / "other.jinja").write_text("{% for %}")
    with pytest.raises(UserError, match=r"data\.chat_template: line 1"):
        load_tokenizer(folder, "other")


def test_arguments_of_config_and_row_reach_the_template(made: Callable[..., TextTokenizer]) -> None:
    tokenizer = made("{{ style }}|" + CHATML, arguments={"style": "terse"})
    assert text(one(ROWS["plain"], tokenizer), tokenizer).startswith("terse|")
    row = ROWS["plain"] | {"chat_template_kwargs": {"style": "long", "unknown": 1}}
    example = one(row, tokenizer)
    assert text(example, tokenizer).startswith("long|"), "the row's own come first"
    assert "the chat template has no use for unknown (chat_template_kwargs)" in example.events
    with pytest.raises(BadRowError, match="`add_generation_prompt`, which is no argument of a template"):
        one(ROWS["plain"] | {"chat_template_kwargs": {"add_generation_prompt": False}}, tokenizer)


def published(name: str, tmp_path: Path) -> TextTokenizer:
    return load_tokenizer(byte_tokenizer(tmp_path / name, (PUBLISHED / f"{name}.jinja").read_text()))


def test_what_a_template_leaves_out_of_answers_is_said_with_its_share(tmp_path: Path) -> None:
    distilled = published("deepseek_r1_distill", tmp_path)
    why = "It rains there every autumn day. " * 4
    example = one(pair(f"<think>\n{why}\n</think>\n\nRain.", f"<think>\n{why}\n</think>\n\nSun."), distilled)
    assert 0.9 < example.dropped_share < 1
    assert "leaves out 90% or more of the answers' text, which is not scored" in "; ".join(example.events)
    assert why not in text(example, distilled)
    qwen = published("qwen3", tmp_path)
    example = one(pair(f"<think>\n{why}\n</think>\n\nRain.", f"<think>\n{why}\n</think>\n\nSun."), qwen)
    assert example.dropped_share == 0, "it writes the last turn's reasoning"
    assert example.events == ()
    several = pair([says("Rain.", reasoning_content=why), QUESTION, says("Still.")], "Sun.")
    assert any("of the answers' text" in event for event in one(several, qwen).events)
    history = one(pair("a", "b", QUESTION, says("c", reasoning_content=why), QUESTION), qwen)
    assert "the chat template leaves out part of the prompt" in history.events
    with pytest.raises(BadRowError, match="identical once tokenised; the chat template leaves out what they differ in"):
        one(ROWS["arguments as text"], published("phi3", tmp_path))


def test_tools_that_a_template_never_writes_are_named(tmp_path: Path) -> None:
    assert (
        "the chat template leaves out the tools"
        in one(ROWS["plain"] | {"tools": [TOOL]}, published("gemma3", tmp_path)).events
    )
    # It writes calls and results in order, and so leaves out which belongs to which.
    assert one(ROWS["tools"], published("qwen2_5", tmp_path)).events == (
        "the chat template has no use for `tool_call_id`, a key of messages",
    )


def test_keys_of_messages_that_a_template_never_reads_are_named(made: Callable[..., TextTokenizer]) -> None:
    question = {**QUESTION, "name": "Ada", "timestamp": 17, "refusal": None}
    row = pair([says("Rain.", weight=1)], "Sun.", question)
    unread = [f"the chat template has no use for `{key}`, a key of messages" for key in ("name", "timestamp", "weight")]
    assert one(row, made(CHATML)).events == tuple(unread)
    assert one(row, made(CHATML.replace("m['role']", "m.get('name', m['role'])"))).events == tuple(unread[1:])
    whole = "{% for m in messages %}{{ m | tojson }}<|im_end|>{% endfor %}"
    assert not any("no use for" in event for event in one(row, made(whole)).events), "it writes whatever a message has"


def test_parts_of_content_are_written_by_templates_or_joined_for_them(
    made: Callable[..., TextTokenizer], tmp_path: Path
) -> None:
    parts = [{"type": "text", "text": "Weather "}, {"type": "text", "text": "in Bern?"}]
    row = pair([says([{"type": "text", "text": "Rain."}])], "Sun.", {"role": "user", "content": parts})  # type: ignore[arg-type]
    joined = one(row, made(CHATML))
    assert joined.events == ("the chat template takes no parts of content; their texts were joined",)
    assert joined.prompt.tolist() == one(pair("Rain.", "Sun."), made(CHATML)).prompt.tolist()
    taken, seeing = published("gemma3", tmp_path), published("smolvlm", tmp_path)
    assert one(row, taken).events == ()
    row["prompt"][0]["content"] = [{"type": "text", "text": "Weather in Bern?"}]
    assert text(one(row, taken), taken) == text(one(pair("Rain.", "Sun."), taken), taken)
    assert "Weather in Bern?" in text(one(pair("Rain.", "Sun."), seeing), seeing), "it leaves strings out"


def test_the_end_of_a_turn_need_not_be_marked_special(made: Callable[..., TextTokenizer]) -> None:
    ordinary = made(CHATML.replace("<|im_end|>", "</think>"))  # a token of its own, not special
    spelled = made(CHATML.replace("<|im_end|>", "[end]"))  # no token at all
    for tokenizer, end in ((ordinary, "</think>\n"), (spelled, "[end]\n")):
        example = one(ROWS["plain"], tokenizer)
        assert tokenizer.decode(example.completions[0].tolist()) == "Rain." + end
        assert example.events == ()
    endless = made(CHATML.replace("<|im_end|>", ""))
    example = one(ROWS["plain"], endless)
    assert endless.decode(example.completions[0].tolist()) == "Rain.\n<eos>"
    assert example.events == ("the template ends no turn; the end-of-sequence token was added",)


def test_special_tokens_in_texts_are_kept_and_named(made: Callable[..., TextTokenizer]) -> None:
    tokenizer = made(CHATML)
    written = Record("<|im_start|>user\nQ<|im_end|>\n", ("Yes.<|im_end|>\n", "No.<|im_end|>\n"), (True, False))
    example = one(written, tokenizer)
    (event,) = example.events
    assert event.startswith("special tokens are spelled out in its text and become tokens: <|im_end|>, <|im_start|>")
    assert "data.chat_template to 'none'" in event
    assert example.prompt.tolist().count(tokenizer.encode(["<|im_start|>"])[0][0]) == 3, "as transformers reads them"
    assert one(ROWS["plain"], tokenizer).events == ()


def test_plain_text_is_surrounded_as_asked_and_nothing_merges(tmp_path: Path) -> None:
    folder = byte_tokenizer(tmp_path / "tokenizer", CHATML)
    form = PromptFormat("none", prefix="Question: 1+1?\nAnswer: 2\n\nQuestion: ", separator="\nAnswer: ")
    tokenizer = load_tokenizer(folder, form)
    example = one(Record("2+2?", ("4", "5"), (True, False)), tokenizer)
    shots = "Question: 1+1?\nAnswer: 2\n\nQuestion: 2+2?\nAnswer:"
    assert tokenizer.decode(example.prompt.tolist()) == shots
    assert [tokenizer.decode(c.tolist()) for c in example.completions] == [" 4<eos>", " 5<eos>"]
    assert example.events == ()
    bare = one(Record("2+2?", ("4", "5"), (True, False)), load_tokenizer(folder, "none"))
    assert bare.events == ("nothing stands between prompt and answer; data.answer_separator can",)
    assert one(Record("2+2?\n", ("4", "5"), (True, False)), load_tokenizer(folder, "none")).events == ()
    with pytest.raises(BadRowError, match="no prompt of its own"):
        one(Record("It is", (" 4", " 5"), (True, False), plain_only=True), tokenizer)
    with pytest.raises(BadRowError, match="tool calls or reasoning, which plain text cannot hold"):
        one(ROWS["call"], tokenizer)


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.template_date: 'tomorrow' is no date; write it as 2026-11-26"):
        PromptFormat(date="tomorrow")
