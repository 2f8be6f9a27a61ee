"""Values on the command line."""

import pytest

from dpop_base.errors import UserError
from megatron_dpop.config.load import override


@pytest.mark.parametrize("text", ["exp #3", "  #3", "[1, 2] # two"])
def test_what_yaml_would_leave_out_of_a_value_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="for a comment; quote the value"):
        override({}, [f"--run.dir={text}"])


@pytest.mark.parametrize(("text", "value"), [("exp#3", "exp#3"), ("'exp #3'", "exp #3"), ("", None), ("a b", "a b")])
def test_other_values_are_taken_whole(text: str, value: str | None) -> None:
    tree: dict = {}
    override(tree, [f"--run.dir={text}"])
    assert tree == {"run": {"dir": value}}
