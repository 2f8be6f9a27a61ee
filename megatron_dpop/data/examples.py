"""What the trainer reads: tokenised examples of one or several sources, and their lengths without their tokens."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .reading import unused_lines
from .storage import StoredExamples


@dataclass(frozen=True)
class TokenizedExample:
    prompt: np.ndarray  # int32 [prompt_tokens]
    completions: tuple[np.ndarray, ...]  # int32 each, with the end of the turn; never empty
    preferred: tuple[bool, ...]  # one a completion; a pair is (True, False)
    source: str  # the source's name, for metrics of its own
    common_prefix_tokens: int  # that all completions begin with; 0 for a single completion


@dataclass(frozen=True)
class Lengths:
    prompt_tokens: np.ndarray  # int32 [n]
    completion_tokens: np.ndarray  # int32 [n, k], zero where an example has fewer than k completions
    common_prefix_tokens: np.ndarray  # int32 [n]; 0 for a single completion


@dataclass(frozen=True)
class SourceExamples:
    """One source's stored examples and what became of its rows."""

    name: str
    path: str
    description: str  # what was recognised, in words
    examples: StoredExamples
    fingerprint: str
    rows: int = 0
    bad: Counter[str] = field(default_factory=Counter)  # fault -> rows left out for it
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows or completions left out, which is no fault
    events: Counter[str] = field(default_factory=Counter)  # what to know -> examples
    unused: Counter[str] = field(default_factory=Counter)  # column or key that nothing uses -> rows
    rows_left_out: tuple[tuple[str, str], ...] = ()  # (where, reason) of rows that gave no example


class TokenizedDataset:
    """A sequence of examples: `order` names the source and the stored example of each, so a blend copies nothing."""

    def __init__(self, sources: Sequence[SourceExamples], order: np.ndarray, *, has_single_labels: bool) -> None:
        """`order`: int64 [n, 2] of (source, example in the source)."""
        self.sources = tuple(sources)
        self.has_single_labels = has_single_labels
        self._order = order
        digest = hashlib.sha256(np.ascontiguousarray(order, dtype="<i8").tobytes())
        for source in self.sources:
            digest.update(f"{source.name}\0{source.fingerprint}\0".encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> TokenizedExample:
        source_index, row = self._order[index].tolist()
        source = self.sources[source_index]
        prompt, completions, preferred, common = source.examples[row]
        return TokenizedExample(prompt, completions, preferred, source.name, common)

    def __iter__(self) -> Iterator[TokenizedExample]:
        return (self[index] for index in range(len(self)))

    @property
    def source_names(self) -> tuple[str, ...]:
        return tuple(source.name for source in self.sources)

    @property
    def source_index(self) -> np.ndarray:
        """int64 [n]: which of `source_names` each example comes from."""
        return self._order[:, 0]

    def lengths(self) -> Lengths:
        """Lengths of every example, read from offsets alone."""
        width = max((source.examples.most_completions() for source in self.sources), default=0)
        return Lengths(
            self._pick([source.examples.prompt_tokens() for source in self.sources]),
            self._pick([source.examples.completion_tokens(width) for source in self.sources]),
            self._pick([source.examples.common_prefix_tokens() for source in self.sources]),
        )

    def labels(self) -> np.ndarray:
        """bool [n]: whether each example's first completion is preferred; for single labels, the label."""
        return self._pick([source.examples.first_preferred() for source in self.sources])

    def _pick(self, by_source: list[np.ndarray]) -> np.ndarray:
        starts = np.concatenate([[0], np.cumsum([len(part) for part in by_source])])
        return np.concatenate(by_source)[starts[self._order[:, 0]] + self._order[:, 1]]

    def describe(self) -> list[str]:
        """What was read, one line a source and one a remark: to be shown before training."""
        lines = []
        for index, source in enumerate(self.sources):
            used = int((self._order[:, 0] == index).sum())
            lines.append(f"{source.name}: {source.description}; {source.rows} rows, {used} examples used")
            lines += [f"{source.name}: {line}" for line in unused_lines(source.unused)]
            for what, count in source.bad.most_common():
                lines.append(f"{source.name}: {count} bad rows left out{', the first' * (count > 1)}: {what}")
            lines += [f"{source.name}: {count} left out: {what}" for what, count in sorted(source.dropped.items())]
            lines += [f"{source.name}: {count} examples: {what}" for what, count in sorted(source.events.items())]
        return [*lines, *self._describe_labels()] if self.has_single_labels else lines

    def _describe_labels(self) -> list[str]:
        preferred = int(self.labels().sum())
        other = len(self) - preferred
        lines = [f"labels: {preferred} chosen, {other} rejected"]
        if not preferred or not other:
            lines.append(
                f"warning: no completion is labelled {'false' if preferred else 'true'}, so there is nothing to tell "
                "apart; add some that are, or choose another loss (loss.name sft imitates those labelled true)"
            )
        return lines
