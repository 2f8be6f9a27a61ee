"""Small files in the forms that people publish: what `data inspect` says of each, one line a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from megatron_dpop.commands.main import run
from megatron_dpop.data.formats import TABLE

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Expected:
    """`examples` of `kind`; faults of rows that cannot be used, reasons of what is left out, what nothing uses."""

    kind: str
    examples: int
    bad: tuple[str, ...] = ()  # the beginning of each fault
    left_out: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    arguments: tuple[str, ...] = field(default=())


def pairs(examples: int = 1, **more: tuple[str, ...]) -> Expected:
    return Expected("pair", examples, **more)


def labels(examples: int = 2, **more: tuple[str, ...]) -> Expected:
    return Expected("single", examples, **more)


def answers(examples: int = 1, **more: tuple[str, ...]) -> Expected:
    return Expected("sft", examples, **more)


READ: dict[str, Expected] = {
    "00_plain.jsonl": pairs(),
    "01_tools_dropped.jsonl": pairs(),
    "01b_tool_call_completion.jsonl": pairs(),
    "01c_tool_call_content_beside.jsonl": pairs(),
    "02_reasoning_content.jsonl": pairs(),
    "02b_reasoning_content_only_differs.jsonl": pairs(),
    "03_chat_template_kwargs.jsonl": pairs(),
    "04_sharegpt_system_column.jsonl": answers(),
    "04b_messages_system_column.jsonl": answers(),
    "04c_alpaca_system_history.jsonl": answers(),
    "04d_whole_conversation_system_column.jsonl": pairs(),
    "04e_query_response_system.jsonl": answers(),
    "04f_orca_chat.jsonl": answers(),
    "05_lf_alpaca_dpo.json": pairs(),
    "05b_lf_sharegpt_dpo.json": pairs(),
    "05c_lf_old_output_list.json": pairs(),
    "05d_messages_label_kto.json": labels(),
    "05e_swift_rejected_response.jsonl": pairs(),
    "05g_lf_alpaca_dpo_shared.jsonl": pairs(),
    "06_distilabel_intel.jsonl": pairs(unused=("generations", "rating", "status")),
    "06b_distilabel_instruction_generations.jsonl": pairs(unused=("generation_models",)),
    "06c_argilla_response.jsonl": pairs(),
    "06d_ratings_null.jsonl": pairs(left_out=("a completion without a rating",)),
    "06e_ranks.jsonl": pairs(),
    "07_openai_preference.jsonl": pairs(unused=("input.parallel_tool_calls",)),
    "07b_nemo_rl.jsonl": pairs(),
    "07c_nemo_aligner.jsonl": pairs(unused=("chosen_reward", "rejected_reward")),
    "07d_helpsteer3.jsonl": pairs(),
    "07e_helpsteer2.jsonl": pairs(unused=("coherence", "complexity", "correctness", "verbosity")),
    "08_nectar.jsonl": pairs(unused=("answers[].model", "turns")),
    "08c_pretemplated_chatml.jsonl": pairs(),
    "08d_special_token_in_user_text.jsonl": pairs(),
    "08e_answer_ends_in_special.jsonl": pairs(),
    "08f_implicit_chatml_strings.jsonl": pairs(),
    "09_two_users.jsonl": pairs(),
    "09c_roles_human.jsonl": pairs(),
    "09d_developer.jsonl": pairs(),
    "09e_assistant_opens.jsonl": pairs(),
    "09f_sharegpt_gpt_first.jsonl": answers(left_out=("an assistant turn that opens the conversation",)),
    "09g_system_in_middle.jsonl": pairs(),
    "10b_kto_completion_only.jsonl": labels(),
    "10c_kto_desirable.jsonl": labels(),
    "10d_kto_int.jsonl": labels(),
    "11_content_parts.jsonl": pairs(),
    "12b_dict_completion.jsonl": pairs(),
    "12c_list_of_strings.jsonl": pairs(),
    "12d_multi_turn_completion.jsonl": pairs(),
    "13_first_row_null.jsonl": pairs(bad=("`prompt` is null",)),
    "13b_rows_of_two_formats.jsonl": pairs(bad=("missing `prompt`",), unused=("question",)),
    "13c_system_null.jsonl": pairs(),
    "14_jsonl_is_array.jsonl": pairs(),
    "14b_data_key.json": pairs(),
    "14d_bom.jsonl": pairs(),
    "14e_utf16.jsonl": pairs(),
    "14f_concatenated_pretty.json": pairs(2),
    "14h_tab.tsv": pairs(),
    "14i_semicolon.csv": pairs(),
    "14j_spaces_header.csv": pairs(),
    "14l_index_col.csv": pairs(unused=("",)),
    "15_surrogate.jsonl": pairs(bad=("`prompt` holds a lone surrogate",)),
    "15b_nul.jsonl": pairs(),
    "16_whitespace_only_difference.jsonl": pairs(),
    "16c_same_answer_prefix.jsonl": pairs(),
    "17_images_null.jsonl": pairs(),
    "18_messages_label_sft.jsonl": labels(),
    "18b_prompt_response_label.jsonl": labels(),
    "18c_question_answer.jsonl": answers(),
    "18d_weights_train_flag.jsonl": answers(left_out=("an assistant turn that its weight of 0 excludes",)),
    "19_margin_columns.jsonl": pairs(unused=("score_chosen", "score_rejected")),
    "20_parquet_union_nulls.parquet": pairs(),
    "20b_timestamp_ns.parquet": pairs(unused=("created",)),
    "20c_dictionary_large.parquet": pairs(),
    "20d_struct_of_lists.parquet": pairs(),
    "20e_binary.parquet": pairs(),
    "20h_pandas_index.parquet": pairs(unused=("__index_level_0__",)),
    "21_saved_folder": pairs(3),
    "21b_saved_dict": pairs(3, arguments=("--split", "test")),
    "21c.csv": pairs(3),
    "21d.jsonl": pairs(3),
    "22_pairs.jsonl.gz": pairs(),
    "23_contradictory.jsonl": pairs(2),
    "23b_dup.jsonl": pairs(2),
    "24_r1_reasoning.jsonl": pairs(),
    "31_all_false.jsonl": labels(4),
}

REFUSED: dict[str, str] = {
    "08c_pretemplated_chatml.csv": "no such file",
    "09b_prefill.jsonl": "roles out of order: the prompt ends with the assistant",
    "09h_system_only_prompt.jsonl": "roles out of order: the prompt ends with the system",
    "14c_columnar.json": "holds one object of columns (prompt, chosen, rejected); write one object a row",
    "14g_latin1.csv": "not UTF-8 text at byte 26; save it as UTF-8",
    "14k_null_cell.csv": "row 1: `rejected` is empty",
    "16b_prefix_pair.jsonl": "line 1: `rejected` only goes on where `chosen` ends",
    "17b_images_given.jsonl": "line 1: the prompt asks about an <image> of `images`",
    "20g_empty.parquet": "holds no rows",
    "21b_saved_dict": "holds the splits train, test; say which with `split`",
}


def test_every_file_is_in_a_table() -> None:
    assert {path.name for path in CASES.iterdir()} <= READ.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READ)
def test_read(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = READ[name]
    assert run(["data", "inspect", str(CASES / name), *expected.arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["examples"]) == (expected.kind, expected.examples)
    for found, wanted in ((report["bad_rows"], expected.bad), (report["left_out"], expected.left_out)):
        assert len(found) == len(wanted)
        assert all(any(text.startswith(begin) for text in found) for begin in wanted)
    assert tuple(report["unused"]) == expected.unused


def test_every_format_has_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for name, expected in READ.items():
        assert run(["data", "inspect", str(CASES / name), *expected.arguments, "--json"]) == 0
        found.add(json.loads(capsys.readouterr().out)["format"].split(" (")[0])
    assert sorted({form.name for form in TABLE} - found) == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "inspect", str(CASES / name)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert REFUSED[name] in error
