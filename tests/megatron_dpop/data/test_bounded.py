"""A template that never ends, or makes too much, is refused in bounded time and memory."""

import itertools
import time
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.data.bounded import TooSlowError, WithinSeconds
from megatron_dpop.data.records import BadRowError
from megatron_dpop.data.tokenizer import load_tokenizer
from tests.tiny import write_tokenizer

LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}"
LARGE = {
    "text": "{{ 'x' * 99999999999 }}",
    "list": "{{ ([1] * 99999999999) | length }}",
    "number": "{{ 10 ** (10 ** 10) }}",
    "width": "{{ '%9999999999d' % 1 }}",
}


def test_what_takes_too_long_is_stopped() -> None:
    began = time.process_time()
    with pytest.raises(TooSlowError), WithinSeconds(0.2):
        sum(1 for _ in itertools.count())
    assert time.process_time() - began < 2
    with WithinSeconds(0.05):
        pass
    end = time.process_time() + 0.1
    while time.process_time() < end:  # the timer was put away
        pass


def _refusal(folder: Path, template: str) -> str:
    """What a template is refused with, when it is loaded or when it is used."""
    message = [{"role": "user", "content": "w1"}]
    try:
        load_tokenizer(folder, template).template_for(None).render(message, ask=True)
    except (UserError, BadRowError) as error:
        return str(error)
    return ""


def test_a_looping_template_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    monkeypatch.setattr("megatron_dpop.data.bounded.SECONDS", 0.2)
    assert "seconds" in _refusal(tmp_path, LOOPS)


@pytest.mark.parametrize("name", LARGE)
def test_an_operation_that_makes_too_much_is_refused(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path)
    assert "has more than" in _refusal(tmp_path, LARGE[name])
