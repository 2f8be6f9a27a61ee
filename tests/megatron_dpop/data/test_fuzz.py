"""Broken files of every kind end in one line that names the file, never in a traceback."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpop_base.errors import UserError
from megatron_dpop.commands.main import run
from megatron_dpop.data.files.read_rows import read_rows
from megatron_dpop.data.load import DataSource, load_dataset

GOOD = {"prompt": "Q", "chosen": "a", "rejected": "b"}
ROLE = {"role": "user", "content": "x"}
BROKEN = {
    "empty.jsonl": (b"", "holds no rows"),
    "blank.jsonl": (b"\n\n", "holds no rows"),
    "cut.jsonl": (json.dumps(GOOD).encode() + b'\n{"prompt": "Q", "cho', "line 2: broken JSON"),
    "list.jsonl": (b"[1, 2]\n", "line 1: a JSON object is needed"),
    "latin.jsonl": (b'{"prompt": "\xe9", "chosen": "a", "rejected": "b"}\n', "line 1: not UTF-8"),
    "surrogate.jsonl": (b'{"prompt": "Q", "chosen": "\\ud800", "rejected": "b"}\n', "line 1: .*lone surrogate"),
    "deep.jsonl": (b"[" * 100_000 + b"\n", "line 1: (JSON that cannot be read|broken JSON)"),
    "number.json": (b"17", "row 1: a JSON object is needed, not int"),
    "object.json": (b'{"data":\n []}', "columns `data` are no known format"),
    "rows.json": (b"[1]", "row 1: a JSON object is needed"),
    "cut.json": (b'[{"prompt": "Q",\n "chosen": ', "line 2: broken JSON"),
    "digits.jsonl": (b'{"prompt": ' + b"9" * 5000 + b"}\n", "line 1: (JSON that cannot be read|missing)"),
    "header.csv": (b"prompt,chosen,rejected\n", "holds no rows"),
    "ragged.csv": (b"prompt,chosen,rejected\nQ,a\n", "row 1: has 2 fields, the header has 3"),
    "text.parquet": (b"PAR1 this is no parquet file PAR1", "not a whole parquet file"),
    "empty.parquet": (b"", "not a whole parquet file"),
    "text.arrow": (b"nothing", "not a whole Arrow file"),
    "notes.txt": (b"hello", "unknown file type '.txt'"),
    "sheet.xlsx": (b"PK", "save the sheet as .csv"),
    "binary.json": (bytes(range(256)), "not UTF-8|broken JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, sentencepiece_bare: Path, name: str) -> None:
    content, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset([DataSource(path)], sentencepiece_bare, max_tokens=64, chat_template="none", progress=False)
    line = str(caught.value)
    assert line.startswith(str(path))
    assert "\n" not in line
    assert len(line) < 500


@pytest.mark.parametrize("name", BROKEN)
def test_the_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BROKEN[name][0])
    assert run(["data", "inspect", str(path)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"megatron-dpop: error: {path}")
    assert error.count("\n") == 1


def write_table(path: Path, table: pyarrow.Table) -> bytes:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, row_group_size=20)
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=20)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_text_that_is_no_utf8_is_named_with_its_row(tmp_path: Path, name: str) -> None:
    texts = [b"fine", b"fine", b"caf\xe9 au lait", b"fine"]
    values = pyarrow.array(texts * 10, pyarrow.binary()).view(pyarrow.string())
    write_table(tmp_path / name, pyarrow.table({**dict.fromkeys(GOOD, ["x"] * 40), "chosen": values}))
    with pytest.raises(UserError, match=rf"{name}, row 3: `chosen` is not UTF-8 text; write the file again"):
        list(read_rows(tmp_path / name))
    turns = pyarrow.ListArray.from_arrays(range(41), pyarrow.StructArray.from_arrays([values], ["content"]))
    write_table(tmp_path / name, pyarrow.table({"messages": turns}))
    with pytest.raises(UserError, match=rf"{name}, rows 1 to \d+: `messages` is not UTF-8 text"):
        list(read_rows(tmp_path / name))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(suffix=st.sampled_from(["parquet", "arrow"]), data=st.data())
def test_damaged_bytes_are_rows_or_one_line(suffix: str, data: st.DataObject, tmp_path: Path) -> None:
    path, told = tmp_path / f"a.{suffix}", None
    content = bytearray(write_table(path, pyarrow.table({name: [f"{name} {at}" for at in range(50)] for name in GOOD})))
    places = st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255))
    for place, byte in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = byte
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
    try:
        list(read_rows(path))
    except UserError as error:
        told = str(error)
    assert told is None or (told.startswith(str(path)) and told.isprintable())


def test_huge_string_is_only_too_long(tmp_path: Path, sentencepiece_bare: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**GOOD, "chosen": "the apples " * 200_000}) + "\n")
    with pytest.raises(UserError, match=r"line 1: \d+ tokens .* more than data.max_tokens 64"):
        load_dataset([DataSource(path)], sentencepiece_bare, max_tokens=64, chat_template="none", progress=False)


def test_commands_exit_2_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cut.jsonl"
    path.write_text(json.dumps(GOOD) + '\n{"prompt": ')
    for arguments in (
        ["data", "inspect", str(path)],
        ["data", "make", "arc", "--source", str(path), "--output", str(tmp_path / "out")],
        ["data", "make", "metamath", "--source", str(tmp_path / "none.json"), "--output", str(tmp_path / "out")],
        ["data", "inspect", str(path), "--max-tokens", "9"],
    ):
        assert run(arguments) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        assert str(tmp_path) in error or "--tokenizer" in error
    assert not (tmp_path / "out").exists()


leaf: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800")
)
value = st.recursive(
    leaf | st.sampled_from([ROLE, [ROLE], [ROLE, {"role": "assistant", "content": "y"}]]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "score", "response"]), inner, max_size=3)
    ),
    max_leaves=6,
)
columns = st.sampled_from(
    [
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
        ("system", "question", "chosen", "rejected"),
        ("prompt", "responses", "scores"),
        ("prompt", "completions"),
        ("prompt", "response", "rating"),
        ("prompt", "completion", "label"),
        ("messages",),
        ("conversations",),
        ("conversation", "instruction"),
        ("query", "response"),
        ("instruction", "input", "output"),
    ]
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), names=columns)
def test_any_row_is_tokens_or_one_line(
    data: st.DataObject, names: tuple[str, ...], tmp_path: Path, sentencepiece_bare: Path
) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, value)), min_size=1, max_size=3))
    path = tmp_path / "fuzz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kind = data.draw(st.sampled_from(["pair", "single", "group", "sft"]))
    template = data.draw(
        st.sampled_from(["none", "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"])
    )
    source, told = [DataSource(path)], None
    options: dict[str, Any] = {"max_tokens": 64, "too_long": "drop", "workers": 1, "progress": False}
    try:
        dataset = load_dataset(source, sentencepiece_bare, chat_template=template, kind=kind, **options)
    except UserError as error:
        told = str(error)
    if told is None:
        assert all(len(completion) for example in dataset for completion in example.completions)
    else:
        assert told.startswith(str(path))
        assert "\n" not in told
