"""
What a family is to the reader of `config.json`: data, and one function that builds the `Architecture`.

To add a family, add a module to `architectures/families/` that defines a `Family`, list it in `families/__init__.py`,
and give it a table of rules in `rules/families.py`. Every field that transformers' config class of the family has must
stand in exactly one place, and a test compares all of them with the class itself, so that a field that a later
transformers adds is noticed:

- `defaults`: fields that `build` reads (or that `only` restricts), each with the value that transformers takes where
  `config.json` leaves it out. `build` reads them with `fields.integer("hidden_size")`, `.number`, `.flag`,
  `.integer_or_none` and `.get`. Null is not absent: what a null means is for `build` to say.
- `only`: fields of which some values are built; `None` needs no mention. `common_fields.COMMON` has those of every
  family (dropout, quantization, encoder-decoders, ...); an entry here takes the place of the one there.
- `own`: fields of `common_fields.COMMON` that this family builds with any value.
- `hidden_defaults`: what transformers' class reads of a config without defining it as a field.
- `default_theta`: rotary base of a config that names none.
- `harmless`: the family's own fields that provably change nothing; `common_fields.HARMLESS` has those of every family.

Whatever else stands in a `config.json` and is not null is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dpop_base.architectures.architecture import Architecture
from dpop_base.architectures.common_fields import COMMON, HARMLESS
from dpop_base.architectures.fields import Fields, Only
from dpop_base.architectures.rope import DEFAULT_THETA


@dataclass(frozen=True)
class Family:
    model_type: str  # of config.json
    model_classes: tuple[str, ...]  # what `architectures` may name; the first is what we write
    config_class: str | None  # of transformers, where it has one: the test reads defaults there
    defaults: Mapping[str, Any]
    build: Callable[[Fields], Architecture]
    only: Mapping[str, Only] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    hidden_defaults: Mapping[str, Any] = field(default_factory=dict)
    default_theta: float = DEFAULT_THETA

    def read(self, fields: Fields) -> Architecture:
        """The architecture that these fields describe. Raises UserError for any that it cannot honour."""
        defaults = {**self.defaults, **self.hidden_defaults, "rope_theta": self.default_theta}
        fields = Fields(fields.path, fields.values, defaults)
        for name, only in {**COMMON, **self.only}.items():
            if name not in self.harmless | self.own:
                fields.require(name, only)
        architecture = self.build(fields)
        fields.refuse_unknown(HARMLESS | self.harmless)
        return architecture
