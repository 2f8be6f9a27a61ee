"""Chat templates: which one is used, what it is told besides the messages, and what it makes of a conversation."""

import datetime
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.meta

from dpop_base.errors import UserError, first_line

from .bounded import WithinSeconds, bound_operators
from .records import BadRowError, Message

PLAIN = "none"  # the chat template's name for "no template: prompt and completion are plain text"
TOOL_USE, DEFAULT = "tool_use", "default"  # names that transformers gives templates
# Arguments of `apply_chat_template` that are not the template's.
_RESERVED = {
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}
_PROBE = "zebra 7 quartz"
_VALUE_PROBE = "violet 9 onyx"
_DATE_PROBE = "{{ strftime_now('%Y-%m-%d') }}"


@dataclass(frozen=True)
class PromptFormat:
    """How prompts and answers are written: `data.chat_template` and the keys that go with it."""

    chat_template: str | None = None  # None: the tokenizer's own; else "none", a template's name, file or text
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the template; a row's own come first
    date: str | None = None  # what a template is told when it asks for today's; None: today's
    prefix: str = ""  # of plain text, before every prompt
    separator: str = ""  # of plain text, between prompt and answer

    def __post_init__(self) -> None:
        try:
            _ = self.moment
        except ValueError:
            raise UserError(f"data.template_date: {self.date!r} is no date; write it as 2026-11-26") from None

    @staticmethod
    def of(given: "PromptFormat | str | None") -> "PromptFormat":
        return given if isinstance(given, PromptFormat) else PromptFormat(given)

    @property
    def moment(self) -> datetime.datetime:
        return datetime.datetime.fromisoformat(self.date or today())


def today() -> str:
    return datetime.date.today().isoformat()


def is_template(given: str) -> bool:
    return "{%" in given or "{{" in given


def is_template_file(given: str) -> bool:
    try:
        return not is_template(given) and given != PLAIN and Path(given).is_file()
    except (OSError, ValueError):
        return False  # too long for a name, or with a NUL


def chosen_templates(tokenizer: Any, folder: Path, given: str | None) -> dict[str, str]:
    """Returns, by name, the parsed templates that a conversation may take; with one name, that one always."""
    own = tokenizer.chat_template or {}
    named = dict(own) if isinstance(own, Mapping) else {DEFAULT: str(own)}
    origin = "data.chat_template"
    if given is None:
        origin = f"{folder}: the tokenizer's chat template"
        if not named:
            raise UserError(
                f"{folder}: the tokenizer has no chat template; set data.chat_template to a template file, "
                f"or to {PLAIN!r} for plain text"
            )
        if DEFAULT not in named:
            raise UserError(
                f"{folder}: none of the tokenizer's chat templates is its default; set data.chat_template to one of "
                f"{', '.join(sorted(named))}"
            )
        chosen = {name: text for name, text in named.items() if name in (DEFAULT, TOOL_USE)}
    elif given in named:
        chosen = {DEFAULT: named[given]}
    elif is_template(given):
        chosen = {DEFAULT: given}
    elif is_template_file(given):
        chosen = {DEFAULT: _read(given)}
    else:
        names = f" (the tokenizer has {', '.join(sorted(named))})" if isinstance(own, Mapping) and named else ""
        raise UserError(
            f"data.chat_template: {given!r} is no template file, no template text, no name of one of the tokenizer's "
            f"templates{names} and not {PLAIN!r}"
        )
    for text in chosen.values():
        _compiled(text, origin)
    return chosen


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.chat_template: {path} cannot be read as UTF-8 text ({first_line(error)})") from None


def _compiled(text: str, origin: str) -> jinja2.Template:
    """Parsed as transformers does, which keeps it: the object is the one that it renders with."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    bound_operators()
    try:
        return _compile_jinja_template(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{origin}: line {error.lineno}: {error.message}") from None
    except RecursionError:
        raise UserError(f"{origin}: is nested too deeply") from None


class ChatTemplate:
    """One template, rendered by transformers, with everything that it may ask of its surroundings fixed."""

    def __init__(self, tokenizer: Any, text: str, form: PromptFormat) -> None:
        self.text = text
        self._tokenizer = tokenizer
        self._arguments = dict(form.arguments)
        self._moment = form.moment
        self._environment = _compiled(text, "data.chat_template").environment
        self._draws = random.Random(0)
        self._may_draw = "random" in text
        self._ignored: dict[str, bool] = {}
        if asks_date(text) and text != _DATE_PROBE:
            # Rendering takes the object that was parsed here only by transformers' own caching: so it is tried.
            found = ChatTemplate(tokenizer, _DATE_PROBE, form).render([{"role": "user", "content": _PROBE}], ask=False)
            assert found == form.moment.date().isoformat(), "this version of transformers tells templates the time"

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
        given = {**self._arguments, **arguments} if arguments else self._arguments
        if not _RESERVED.isdisjoint(given):
            name = min(_RESERVED.intersection(given))
            raise BadRowError(f"`chat_template_kwargs` has `{name}`, which is no argument of a template; leave it out")
        self._fix_surroundings()
        try:
            with WithinSeconds():
                return str(
                    self._tokenizer.apply_chat_template(
                        list(messages),
                        tools=None if tools is None else list(tools),
                        chat_template=self.text,
                        tokenize=False,
                        add_generation_prompt=ask,
                        **given,
                    )
                )
        except Exception as error:  # a template is somebody's program: whatever it raises, it does not take this
            raise BadRowError(f"the chat template refuses this conversation: {first_line(error)}") from None

    def _fix_surroundings(self) -> None:
        """Time and chance, which are all that a template can ask for. The environment is shared with other objects
        that hold the same text, perhaps with another date."""
        self._environment.globals["strftime_now"] = self._moment.strftime
        self._environment.filters["random"] = self._pick
        self._environment.globals["lipsum"] = _no_filler
        if self._may_draw:  # seeding costs a tenth of a short conversation's rendering
            self._draws.seed(0)

    def _pick(self, _context: Any, values: Sequence[Any]) -> Any:
        """Stands in for Jinja's filter, which is given the context too."""
        return self._draws.choice(values)

    @property
    def has_arguments(self) -> bool:
        return bool(self._arguments)

    def unknown_arguments(self, more: Mapping[str, Any]) -> set[str]:
        """Names among its arguments that it never reads."""
        return {*self._arguments, *more} - self._variables

    def ignores(self, key: str) -> bool:
        """Whether it neither names a key of messages nor writes a message whole, whatever its keys are."""
        if key not in self._ignored:
            tried = self._tried([{"role": "user", "content": _PROBE, key: _VALUE_PROBE}])
            self._ignored[key] = key not in self.text and tried is not None and _VALUE_PROBE not in tried
        return self._ignored[key]

    @cached_property
    def _variables(self) -> frozenset[str]:
        return frozenset(jinja2.meta.find_undeclared_variables(self._environment.parse(self.text)))

    @cached_property
    def takes_parts(self) -> bool:
        """Whether it writes a content of text parts as it writes their text."""
        as_text, as_parts = self._content_tried
        return as_parts is not None and (as_text == as_parts or self.takes_parts_alone)

    @cached_property
    def takes_parts_alone(self) -> bool:
        """Whether it leaves out a content that is a string, as templates of models that see images do."""
        as_text, as_parts = self._content_tried
        return as_parts is not None and _PROBE in as_parts and _PROBE not in (as_text or "")

    @cached_property
    def _content_tried(self) -> tuple[str | None, str | None]:
        parts = [{"type": "text", "text": _PROBE}]
        return self._tried([{"role": "user", "content": _PROBE}]), self._tried([{"role": "user", "content": parts}])

    @cached_property
    def ends_turns(self) -> bool:
        """Whether it writes more than space after an answer."""
        answered = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        found = self._tried(answered)
        return found is not None and bool(found.rpartition(_PROBE)[2].strip())

    def _tried(self, messages: Sequence[Message]) -> str | None:
        try:
            return self.render(messages, ask=False)
        except BadRowError:
            return None


def _no_filler(*_: Any, **__: Any) -> str:
    raise jinja2.TemplateError("lipsum() writes other text each time")


def asks_date(text: str) -> bool:
    return "strftime_now" in text


def template_sources(files: Sequence[Path], given: str | None) -> list[str]:
    """The text of every template that a folder's files (or the given one) hold, with what JSON escapes resolved."""
    texts = [given] if given is not None and is_template(given) else []
    paths = [path for path in files if path.suffix == ".jinja" or path.name in _JSON_WITH_TEMPLATES]
    if given is not None and is_template_file(given):
        paths.append(Path(given))
    for path in paths:
        text = path.read_text(encoding="utf-8", errors="replace")
        texts.append(_unescaped(text) if path.suffix == ".json" else text)
    return texts


_JSON_WITH_TEMPLATES = ("tokenizer_config.json", "chat_template.json")


def _unescaped(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return str(value.get("chat_template")) if isinstance(value, dict) else text
