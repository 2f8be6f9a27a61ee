"""A report and a sample of its examples, for people."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..reading import unused_lines
from ..records import BadRowError, Record, readable
from ..tokenise import common_prefix_tokens, tokenise
from ..tokenizer import TextTokenizer
from .balance import MOST_BY_LENGTH
from .report import LOW_EDIT_DISTANCE, DataReport

_LONGEST_SHOWN_CHARACTERS = 4000
_SCORED = {True: ("black on green", "black on bright_green"), False: ("white on red", "white on bright_red")}
FEWEST_PAIRS = 20  # of unequal lengths, before their share says anything
_SHARED = ("black on cyan", "black on bright_cyan")


def print_report(report: DataReport, console: Console, tokenizer: TextTokenizer | None) -> None:
    console.print(_summary(report))
    if report.lengths:
        console.print(_lengths(report))
    if report.ches:
        console.print(_ches(report))
    for line in warnings(report):
        console.print(Text(f"warning: {line}", style="bold yellow"))
    for record in report.samples:
        console.print(_sample(record, tokenizer))


def warnings(report: DataReport) -> list[str]:
    """What about this file is known to spoil a run."""
    found = []
    low = report.edit_distance.get("share_under_0.1", 0.0)
    if low >= 0.5:
        found.append(
            f"{low:.0%} of the pairs have an edit distance under {LOW_EDIT_DISTANCE:.0%}: on such pairs DPO is known "
            "to lower the chosen answers' likelihood too; use DPOP (loss.name: dpop)"
        )
    for problem, count in report.bad_rows.items():
        places = ", ".join(report.bad_row_places[problem])
        found.append(f"{count} rows cannot be trained on ({places}{', ...' if count > 3 else ''}): {problem}")
    if report.contradictory:
        found.append(f"{report.contradictory} pairs contradict another one, which prefers the other answer")
    found += _length_warning(report)
    if report.dropped_share:
        found.append(f"the chat template leaves out {report.dropped_share:.1%} of the answers' text (mean of examples)")
    if report.prompts_in_other:
        found.append(f"{report.prompts_in_other} prompts are also in {report.other}")
    if report.over_max_tokens:
        found.append(f"{report.over_max_tokens} examples are longer than {report.max_tokens} tokens")
    if report.duplicates:
        found.append(f"{report.duplicates} examples repeat an earlier one")
    return found + [f"{count} examples: {event}" for event, count in report.events.items()]


def _length_warning(report: DataReport) -> list[str]:
    bias = report.length_bias
    if not bias or bias["accuracy"] < MOST_BY_LENGTH or bias["chosen_longer"] + bias["chosen_shorter"] < FEWEST_PAIRS:
        return []
    side = "longer" if bias["chosen_longer"] > bias["chosen_shorter"] else "shorter"
    return [
        f"length alone tells the chosen answer in {bias['accuracy']:.0%} of the pairs of unequal lengths (it is the "
        f"{side} one): a model may learn to write {side} answers and no more; balance the pairs (data filter), or "
        "choose a loss that divides by length"
    ]


def _summary(report: DataReport) -> Table:
    table = Table.grid(padding=(0, 2))
    rows = {
        "file": report.path,
        "format": report.format,
        "rows": f"{report.rows}, of which {sum(report.bad_rows.values())} cannot be used",
        "examples": f"{report.examples} ({report.kind})",
        "left out": ", ".join(f"{count} {reason}" for reason, count in report.left_out.items()) or "none",
        **({"not used": unused_lines(report.unused)[0].removeprefix("not used: ")} if report.unused else {}),
        "duplicates": f"{report.duplicates} examples, {report.repeated_prompts} prompts",
    }
    if report.edit_distance:
        distance = report.edit_distance
        rows["edit distance"] = (
            f"mean {distance['mean']:.1%}, median {distance['p50']:.1%}, 95% {distance['p95']:.1%}; "
            f"{distance['share_under_0.1']:.1%} of pairs under {LOW_EDIT_DISTANCE:.0%}"
        )
    hammings = ((report.hamming, "characters"), (report.token_hamming, "tokens"))
    if report.hamming:
        rows["Hamming distance"] = ", ".join(f"mean {h['mean']:.1%} in {unit}" for h, unit in hammings if h)
    if report.length_bias:
        bias = report.length_bias
        rows["longer answer"] = (
            f"chosen in {bias['chosen_longer']} pairs, rejected in {bias['chosen_shorter']}, equal in {bias['equal']}; "
            f"length alone tells {bias['accuracy']:.1%} of the unequal (area under the curve {bias['auc']:.2f})"
        )
        rows["contradictory"] = f"{report.contradictory} pairs"
    if report.shared_prefix_share is not None:
        rows["shared prefix"] = f"{report.shared_prefix_share:.1%} of the completions' {report.unit}"
    if report.prompts_in_other is not None:
        rows["prompts in both"] = f"{report.prompts_in_other} (with {report.other})"
    if report.over_max_tokens is not None:
        rows["too long"] = f"{report.over_max_tokens} over {report.max_tokens} tokens"
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _lengths(report: DataReport) -> Table:
    points = list(next(iter(report.lengths.values())))
    table = Table(title=f"lengths in {report.unit}", title_justify="left")
    table.add_column("part")
    for point in points:
        table.add_column(point, justify="right")
    for name, values in report.lengths.items():
        table.add_row(name, *(str(values[point]) for point in points))
    return table


def _ches(report: DataReport) -> Table:
    points = list(next(iter(report.ches.values())))
    table = Table(title="similarity of both answers' hidden states (CHES)", title_justify="left")
    table.add_column("score")
    for point in points:
        table.add_column(point, justify="right")
    for name, values in report.ches.items():
        table.add_row(name, *(f"{values[point]:.4g}" for point in points))
    if report.unscored:
        table.caption = f"without the {report.unscored} pairs that are too long"
    return table


def _sample(record: Record, tokenizer: TextTokenizer | None) -> Panel:
    if tokenizer is None:
        parts: list[Text] = [Text(_visible(readable(record.prompt)), style="dim")]
        for completion, good in zip(record.completions, record.preferred, strict=True):
            parts += [_heading(good, ""), Text(_visible(readable(completion)))]
        return Panel(Group(*parts), title="sample (give a tokenizer to see its tokens)", title_align="left")
    tokens = tokenise([record], tokenizer, max_tokens=2**31, too_long="stop")[0]
    assert tokens is not None
    assert not isinstance(tokens, BadRowError)
    shared = common_prefix_tokens(tokens.completions)
    parts = [Text(f"prompt: {len(tokens.prompt)} tokens, not scored", style="bold")]
    parts.append(Text(_visible(tokenizer.decode(tokens.prompt.tolist())), style="dim"))
    for ids, good in zip(tokens.completions, tokens.preferred, strict=True):
        parts.append(_heading(good, f": {len(ids)} tokens scored, the first {shared} shared"))
        text = Text()
        for index, (first, piece) in enumerate(_pieces(ids.tolist(), tokenizer)):
            text.append(_visible(piece), style=(_SHARED if first < shared else _SCORED[good])[index % 2])
        parts.append(text)
    return Panel(Group(*parts), title="sample as the model sees it: scored tokens in colour", title_align="left")


def _heading(good: bool, text: str) -> Text:
    return Text(f"{'chosen' if good else 'rejected'}{text}", style="bold green" if good else "bold red")


def _pieces(ids: Sequence[int], tokenizer: TextTokenizer) -> Iterator[tuple[int, str]]:
    """(first token, text) of the shortest runs of tokens that are whole characters."""
    start, before = 0, ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        if text.endswith("\ufffd") and end < len(ids):
            continue
        yield start, text[len(before) :]
        start, before = end, text
        if len(before) > _LONGEST_SHOWN_CHARACTERS:
            return


def _visible(text: str) -> str:
    """The text with control characters spelled out, so that a file cannot steer the terminal."""
    shown = text if len(text) <= _LONGEST_SHOWN_CHARACTERS else text[:_LONGEST_SHOWN_CHARACTERS] + " [cut here]"
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
