"""A SentencePiece model without Hugging Face files around it, read by SentencePiece itself."""

import re
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_format

from dpop_base.errors import UserError, first_line


def sentencepiece_file(path: Path) -> Path | None:
    """The model to read directly: a `.model` file, or the only one of a folder without Hugging Face's files."""
    if path.is_file() and path.suffix == ".model":
        return path
    if not path.is_dir() or any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    found = sorted(path.glob("*.model"))
    return found[0] if len(found) == 1 else None


class SentencePieceModel:
    """The part of a Hugging Face tokenizer's interface that is used here, over a SentencePiece model.

    Control symbols spelled out in a text become their tokens. The space that SentencePiece puts before a text is
    put before its first piece only, not after each control symbol.
    """

    chat_template = None
    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 - the interface's name; nothing is ever added

    def __init__(self, path: Path) -> None:
        try:
            self._head = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError, TypeError) as error:
            raise UserError(f"{path}: not a SentencePiece model ({first_line(error)})") from None
        model = model_format.ModelProto.FromString(path.read_bytes())  # type: ignore[attr-defined]
        model.normalizer_spec.add_dummy_prefix = False
        self._rest = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
        size = self._head.get_piece_size()
        self._control = {self._head.id_to_piece(i): i for i in range(size) if self._head.is_control(i)}
        names = "|".join(re.escape(piece) for piece in sorted(self._control, key=len, reverse=True))
        self._split = re.compile(f"({names})") if names else None
        self.all_special_ids = sorted(self._control.values())
        self.all_special_tokens = list(self._control)
        self.eos_token = self._piece(self._head.eos_id())
        self.bos_token = self._piece(self._head.bos_id())
        self.special_tokens_map = {"eos_token": self.eos_token, "bos_token": self.bos_token}

    def _piece(self, index: int) -> str | None:
        return self._head.id_to_piece(index) if index >= 0 else None

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        lead = [self._head.bos_id()] if add_special_tokens and self._head.bos_id() >= 0 else []
        ids: list[int] = []
        for index, part in enumerate(self._split.split(text) if self._split else [text]):
            if part in self._control:
                ids.append(self._control[part])
            elif part:
                ids += (self._rest if index else self._head).encode(part)
        return {"input_ids": lead + ids}

    def decode(self, tokens: list[int], **_: Any) -> str:
        text: list[str] = []
        run: list[int] = []
        for token in [*tokens, -1]:
            if token >= 0 and not self._head.is_control(token):
                run.append(token)
                continue
            if run:
                text.append((self._rest if text else self._head).decode(run))
                run = []
            if token >= 0:
                text.append(self._head.id_to_piece(token))
        return "".join(text)

    def convert_tokens_to_ids(self, piece: str) -> int:
        return int(self._head.piece_to_id(piece))

    def apply_chat_template(
        self,
        messages: list,
        *,
        chat_template: str,
        tokenize: bool,
        add_generation_prompt: bool,
        tools: list | None = None,
        **arguments: Any,
    ) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        assert not tokenize
        rendered, _ = render_jinja_template(
            conversations=[[{k: v for k, v in message.items() if v is not None} for message in messages]],
            tools=tools,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **{name: token or "" for name, token in self.special_tokens_map.items()} | arguments,
        )
        return str(rendered[0])
