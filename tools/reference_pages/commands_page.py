"""docs/reference/commands.md: every command with its options, from the parsers that read them."""

import argparse
import re
from collections.abc import Iterator

from checkpoint_convert.commands import build_parser as checkpoint_convert_parser
from megatron_dpop.commands.main import build_parser as megatron_dpop_parser

INTRODUCTION = """# Commands

Every command has `--help` and exits 0 on success, 2 on bad input with one line that names the file, key or value and
the fix.
A run's other exit codes are in [SLURM clusters](../cluster.md#what-a-job-survives).
"""


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command that does something, by its words: `megatron-dpop data inspect`."""
    found = {}
    for parser in (megatron_dpop_parser(), checkpoint_convert_parser()):
        found.update({leaf.prog: leaf for leaf in _leaves(parser)})
    return found


def _leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield parser
    for action in below:
        for child in action.choices.values():
            yield from _leaves(child)


def examples(parser: argparse.ArgumentParser) -> list[str]:
    """The command lines that the end of its help shows."""
    lines = (parser.epilog or "").removeprefix("example:").removeprefix("examples:").strip().splitlines()
    return [line.strip() for line in lines if line.strip()]


def commands_page() -> str:
    return "\n".join([INTRODUCTION, *(_command(prog, parser) for prog, parser in parsers().items())])


def _command(prog: str, parser: argparse.ArgumentParser) -> str:
    lines = [f"## {prog}", ""]
    if text := parser.description or _summary_of(prog):
        lines += [_sentence(text), ""]
    lines += ["```bash", *examples(parser), "```", "", "| | |", "| --- | --- |"]
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            lines.append(f"| {_name(action)} | {_escaped(_help(action))} |")
    return "\n".join([*lines, ""])


def _summary_of(prog: str) -> str | None:
    """What the list of the command above says of it."""
    *above, name = prog.split()
    for parser in (megatron_dpop_parser(), checkpoint_convert_parser()):
        for word in above[1:]:
            parser = _children(parser).get(word, parser)
        for action in parser._actions:
            for choice in getattr(action, "_choices_actions", ()):
                if choice.dest == name and parser.prog == " ".join(above):
                    return str(choice.help)
    return None


def _children(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _name(action: argparse.Action) -> str:
    value = action.metavar or (action.choices and "{" + ",".join(map(str, action.choices)) + "}") or action.dest.upper()
    words = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return f"`{words}{' ...' if action.nargs in ('+', '*') else ''}`"
    takes_value = action.nargs != 0 and not isinstance(action, argparse.BooleanOptionalAction)
    many = " ..." if action.nargs in ("+", "*") else ""
    shown = f" {words}{many}" if takes_value else ""
    return ", ".join(f"`{option}{shown}`" for option in action.option_strings) + (
        " (required)" if action.required else ""
    )


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")


def _sentence(text: str) -> str:
    text = re.sub(r"(--section\.key VALUE)", r"`\1`", text[0].upper() + text[1:])
    return text if text.endswith(".") else f"{text}."


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
