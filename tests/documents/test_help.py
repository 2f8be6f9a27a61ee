"""Every command's help shows an example that the command takes, and every command is in the documents."""

import argparse
import shlex

import pytest
from reference_pages.commands_page import examples, parsers

from checkpoint_convert.commands import build_parser as checkpoint_convert_parser
from megatron_dpop.commands.main import build_parser as megatron_dpop_parser
from tests.documents.commands import ROOT, documented_commands

PARSERS = parsers()
ROOTS = {"megatron-dpop": megatron_dpop_parser, "checkpoint-convert": checkpoint_convert_parser}


@pytest.mark.parametrize("prog", PARSERS)
def test_help_shows_an_example_that_parses(prog: str) -> None:
    shown = examples(PARSERS[prog])
    assert shown, f"{prog} --help has no example"
    for line in shown:
        program, *words = shlex.split(line)
        assert line.startswith(prog)
        parsed, rest = ROOTS[program]().parse_known_args(words)
        assert not rest or parsed.takes_overrides, rest


@pytest.mark.parametrize("prog", PARSERS)
def test_every_option_has_a_help_text(prog: str) -> None:
    positional = argparse._StoreAction
    silent = [
        action.dest
        for action in PARSERS[prog]._actions
        if not action.help and (action.option_strings or not isinstance(action, positional))
    ]
    assert silent == []


@pytest.mark.parametrize("prog", PARSERS)
def test_command_is_shown_outside_the_reference(prog: str) -> None:
    pages = [command for command in documented_commands() if command.document.parent.name != "reference"]
    makers = (ROOT / "docs" / "data.md").read_text()  # in a table there, as `data make NAME ...`
    in_table = f"| `{prog.removeprefix('megatron-dpop ')} " in makers
    assert in_table or any(command.line.startswith(prog) for command in pages)
