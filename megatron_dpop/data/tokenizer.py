"""Text to tokens as the model sees them: its chat template, its special tokens once each."""

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from checkpoint_convert.errors import UserError, first_line

from .records import BadRowError, Message
from .sentencepiece_model import SentencePieceModel, sentencepiece_file

PLAIN = "none"  # the chat template's name for "no template: prompt and completion are plain text"


class TextTokenizer:
    """A Hugging Face tokenizer with the template that is to be used, or none.

    `prefix_ids` are the tokens that it puts before plain text (usually the beginning-of-sequence token).
    """

    def __init__(self, tokenizer: Any, template: str | None, name: str) -> None:
        self.name = name
        self.template = template
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()
        bare = self.encode(["a"])[0]
        dressed = tokenizer("a")["input_ids"]
        self.prefix_ids = tuple(dressed[: dressed.index(bare[0])]) if bare and bare[0] in dressed else ()
        self.special_ids = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        self._cuts = self._safe_cuts()

    @property
    def is_plain(self) -> bool:
        return self.template is None

    @property
    def end_text(self) -> str:
        """The end-of-sequence token as text; UserError where the tokenizer has none."""
        if self._tokenizer.eos_token is None:
            raise UserError(f"{self.name}: the tokenizer has no end-of-sequence token; set `eos_token` in it")
        return str(self._tokenizer.eos_token)

    @property
    def end_id(self) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(self.end_text))

    def cut(self, text: str) -> int:
        """Where the text's last special token begins, or 0: what stands before and after it is tokenised apart."""
        cuts = list(self._cuts.finditer(text)) if self._cuts else []
        return cuts[-1].start() if cuts else 0

    def _safe_cuts(self) -> re.Pattern[str] | None:
        """Special tokens that split a text whatever stands around them, found so by trying."""
        tokens = [token for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        names = {str(token) for token in tokens if not (token.lstrip or token.rstrip or token.single_word)}
        around = ("a b", " a", "\n", "1.")
        probes = [(left, name + right) for name in names for left in around for right in around]
        wholes = self.encode([left + right for left, right in probes])
        lefts, rights = self.encode([left for left, _ in probes]), self.encode([right for _, right in probes])
        safe = {
            name
            for name in names
            if all(
                whole == left_ids + right_ids
                for (_, right), whole, left_ids, right_ids in zip(probes, wholes, lefts, rights, strict=True)
                if right.startswith(name)
            )
        }
        ordered = sorted(safe, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of each text; special tokens only where the text spells them out."""
        if self._backend is not None:
            return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        return [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def render(
        self,
        messages: Sequence[Message],
        *,
        ask: bool,
        tools: Sequence[dict[str, Any]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text; with `ask` it ends where the assistant is to begin.

        BadRowError: the template refuses the conversation.
        """
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages),
                    tools=None if tools is None else list(tools),
                    chat_template=self.template,
                    tokenize=False,
                    add_generation_prompt=ask,
                    **(arguments or {}),
                )
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise BadRowError(f"the chat template refuses this conversation: {first_line(error)}") from None


_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that a tokenizer and its chat template are read from."""
    model = sentencepiece_file(folder)
    return [path for path in ([model] if model else [folder / name for name in _FILES]) if path.is_file()]


def tokenizer_fingerprint(folder: Path, chat_template: str | None) -> str:
    """Changes whenever the tokens of some text may change: the folder's files, the template, the library's version.

    Reads files only, so that a run whose tokens are cached need not build the tokenizer.
    """
    digest = hashlib.sha256(f"transformers {importlib.metadata.version('transformers')}".encode())
    given = (
        Path(chat_template).read_bytes() if chat_template and _is_file(chat_template) else repr(chat_template).encode()
    )
    digest.update(given)
    for path in tokenizer_files(folder):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def load_tokenizer(folder: Path, chat_template: str | None = None) -> TextTokenizer:
    """The tokenizer in a local folder, or a SentencePiece model without Hugging Face files.

    `chat_template`: None for its own (UserError if it has none), "none" for plain text, a template file, or a
    template's text.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give one that holds tokenizer files")
    model = sentencepiece_file(folder)
    tokenizer = SentencePieceModel(model) if model else _hugging_face(folder)
    return TextTokenizer(tokenizer, _template(tokenizer, folder, chat_template), str(folder))


def _hugging_face(folder: Path) -> Any:
    from transformers import AutoTokenizer  # takes seconds, which commands that need no tokenizer should not wait

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a broken tokenizer.json raises bare Exception
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder}: its tokenizer is code of its own (auto_map), which is never run; "
                "set model.tokenizer to a folder with the same tokens as a tokenizer.json"
            ) from None
        raise UserError(f"{folder}: no tokenizer can be read from it ({first_line(error)})") from None


def _template(tokenizer: Any, folder: Path, given: str | None) -> str | None:
    if given == PLAIN:
        return None
    if given is None:
        own = tokenizer.chat_template
        if isinstance(own, dict):
            own = own.get("default")
        if not own:
            raise UserError(
                f"{folder}: the tokenizer has no chat template; set data.chat_template to a template file, "
                f"or to {PLAIN!r} for plain text"
            )
        return str(own)
    if _is_template(given):
        text = given
    elif _is_file(given):
        text = Path(given).read_text(encoding="utf-8")
    else:
        raise UserError(f"data.chat_template: {given!r} is no template file, no template text and not {PLAIN!r}")
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.chat_template: line {error.lineno}: {error.message}") from None
    return text


def _is_template(given: str) -> bool:
    return "{%" in given or "{{" in given


def _is_file(given: str) -> bool:
    return not _is_template(given) and given != PLAIN and Path(given).is_file()
