"""Text to tokens as the model sees them: its chat template, its special tokens once each."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError, first_line

from .sentencepiece_model import SentencePieceModel, sentencepiece_file
from .templates import (
    DEFAULT,
    PLAIN,
    TOOL_USE,
    ChatTemplate,
    PromptFormat,
    asks_date,
    chosen_templates,
    is_template_file,
    template_sources,
)

SPECIAL = "special"


class TextTokenizer:
    """A Hugging Face tokenizer with the templates that are to be used, or none.

    `prefix_ids` are the tokens that it puts before plain text (usually the beginning-of-sequence token).
    """

    def __init__(self, tokenizer: Any, form: PromptFormat, templates: Mapping[str, ChatTemplate], name: str) -> None:
        self.name = name
        self.form = form
        self._templates = dict(templates)
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
        # A token that ends a turn may have been added without being marked as special.
        self.added_ids = self.special_ids | frozenset(tokenizer.added_tokens_decoder)
        self._cuts = self._safe_cuts()
        self._names, self._heads = _special_names(tokenizer)

    @property
    def is_plain(self) -> bool:
        return not self._templates

    def template_for(self, tools: Sequence[Any] | None) -> ChatTemplate:
        """Chooses as transformers does: the template for tools, where there is one, for a row that has some."""
        if tools is not None and TOOL_USE in self._templates:
            return self._templates[TOOL_USE]
        return self._templates[DEFAULT]

    def spelled_out(self, text: str) -> set[str]:
        """Special tokens that a text spells out, which become tokens."""
        if self._names is None or not any(head in text for head in self._heads):
            return set()
        return set(self._names.findall(text))

    @property
    def end_text(self) -> str:
        """The end-of-sequence token as text; UserError where the tokenizer has none."""
        if self._tokenizer.eos_token is None:
            raise UserError(f"{self.name}: the tokenizer has no end-of-sequence token; set `eos_token` in it")
        return str(self._tokenizer.eos_token)

    @property
    def end_id(self) -> int:
        return int(self._tokenizer.convert_tokens_to_ids(self.end_text))

    def token_ids(self, names: Sequence[str], *, key: str) -> frozenset[int]:
        """Ids of single tokens by their texts, "special" for all special ones; UserError, with `key`, for others."""
        found: set[int] = set()
        for name in names:
            if name == SPECIAL:
                found |= self.special_ids
                continue
            ids = self.encode([name])[0]
            if len(ids) != 1:
                raise UserError(
                    f"{key}: {name!r} is {len(ids)} tokens of {self.name}; name single tokens as the tokenizer writes "
                    f"them, such as {self.end_text!r}, or {SPECIAL} for all special ones"
                )
            found |= set(ids)
        return frozenset(found)

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


def _special_names(tokenizer: Any) -> tuple[re.Pattern[str] | None, list[str]]:
    """What finds special tokens in a text, and what each of them begins with: to look for first, which is quick."""
    added = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = {name for name in added | set(tokenizer.all_special_tokens) if len(name) > 1}
    if not names:
        return None, []
    ordered = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))), sorted({name[:2] for name in names})


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
    """The files that a tokenizer and its chat templates are read from."""
    model = sentencepiece_file(folder)
    if model:
        return [model]
    named = sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return [path for path in [*(folder / name for name in _FILES), *named] if path.is_file()]


def tokenizer_fingerprint(folder: Path, form: PromptFormat | str | None) -> str:
    """Changes whenever the tokens of some text may change: the folder's files, the template, what it is told, the
    library's version. The date plays a part where a template asks for it.

    Reads files only, so that a run whose tokens are cached need not build the tokenizer.
    """
    form = PromptFormat.of(form)
    given = form.chat_template
    digest = hashlib.sha256(f"transformers {importlib.metadata.version('transformers')}".encode())
    digest.update(Path(given).read_bytes() if given and is_template_file(given) else repr(given).encode())
    digest.update(json.dumps([form.arguments, form.prefix, form.separator], sort_keys=True).encode())
    files = tokenizer_files(folder)
    for path in files:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    if any(asks_date(text) for text in template_sources(files, given)):
        digest.update(form.moment.isoformat().encode())
    return digest.hexdigest()


def load_tokenizer(folder: Path, form: PromptFormat | str | None = None) -> TextTokenizer:
    """The tokenizer in a local folder, or a SentencePiece model without Hugging Face files.

    `form`: how texts are written, or its chat template alone: None for the tokenizer's own (UserError if it has
    none), "none" for plain text, one of its templates' names, a template file, or a template's text.
    """
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give one that holds tokenizer files")
    form = PromptFormat.of(form)
    model = sentencepiece_file(folder)
    tokenizer = SentencePieceModel(model) if model else _hugging_face(folder)
    try:
        return _with_templates(tokenizer, folder, form)
    except UserError:
        raise
    except Exception as error:  # what its files say may be of any kind: transformers looks when it first tokenises
        raise UserError(f"{folder}: its tokenizer cannot be used ({first_line(error)}); download it again") from None


def _with_templates(tokenizer: Any, folder: Path, form: PromptFormat) -> TextTokenizer:
    if form.chat_template == PLAIN:
        return TextTokenizer(tokenizer, form, {}, str(folder))
    texts = chosen_templates(tokenizer, folder, form.chat_template)
    templates = {name: ChatTemplate(tokenizer, text, form) for name, text in texts.items()}
    return TextTokenizer(tokenizer, form, templates, str(folder))


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
