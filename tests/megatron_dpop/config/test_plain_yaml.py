"""A config of any content is read as plain data or refused in one line, in bounded time."""

import re
import time
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config import load_config
from megatron_dpop.config.plain_yaml import read_yaml

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
REFUSED = {
    "aliases of aliases": (LAUGHS, "stands for more than"),
    "itself": ("a: &a [*a]", "contains itself"),
    "depth": ("[" * 500 + "]" * 500, "nested deeper"),
    "length": ("a: " + "x" * 200_000, "is longer than"),
    "an object": ("a: !!python/object/apply:os.system [echo]", "no YAML|could not determine"),
    "a character": ('a: "x\\0y"', "character"),
    "half a character": ('a: "\\ud800"', "character|no YAML"),
    "a question mark within braces": ("a:\n  b: {c: d?}\n", r"see line 2, near column 11, where a text with \? or"),
    "a bracket too many": ("a: [b]]\n", r"see line 1, near column 7$"),
    "a key that is none": ("1: 2", "no text"),
    "a number without end": ("a: 0x" + "f" * 5000, "beyond 64 bits"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_data_is_refused_at_once(name: str) -> None:
    text, reason = REFUSED[name]
    began = time.process_time()
    with pytest.raises(ValueError, match=reason):
        read_yaml(text)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("train: {steps: 20}\nmodel: {path: m}\ntrain:\n  seed: 3\n", "`train` stands twice, in lines 1 and 3"),
        ("a: {b: 1, c: 2, b: 3}", "`b` stands twice, in line 1"),
        ('a:\n  "b": 1\n  b: 2', "`b` stands twice, in lines 2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused_and_not_dropped(text: str, places: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{places}; write it once")):
        read_yaml(text)


def test_plain_data_is_what_yaml_says() -> None:
    text = "a: &a {b: [1, 2.5, null, true, w]}\nc: {<<: *a, d: 2020-13-45}\ne: 2026-11-26\n"
    inner = {"b": [1, 2.5, None, True, "w"]}
    assert read_yaml(text) == {"a": inner, "c": {**inner, "d": "2020-13-45"}, "e": "2026-11-26"}


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--data.train=5",), "data.train: 5 is not valid"),
        (("--data.train", "[{path: 2020-13-45, weight: 2020-13-45}]"), "weight"),
        (("--loss.beta", "&a [*a]"), "--loss.beta: cannot read the value"),
        (("--logging.stop_on", "5"), "logging.stop_on"),
        (("--model.path", '"a\\0b"'), "character"),
    ],
)
def test_overrides_of_any_content_are_one_line(tmp_path: Path, words: tuple[str, ...], reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {path: m}\ndata: {train: p.jsonl}\n")
    with pytest.raises(UserError, match=reason):
        load_config(path, words)
