"""The families' fields and defaults against transformers' own config classes, whichever version is installed."""

import dataclasses
from typing import Any

import pytest
import transformers
from transformers import GenerationConfig, PreTrainedConfig

from checkpoint_convert.rules.families import RULES
from dpop_base.architectures.common_fields import COMMON, HARMLESS
from dpop_base.architectures.families import FAMILIES
from dpop_base.architectures.family import Family
from dpop_base.architectures.rope import DEFAULT_THETA

OF_TRANSFORMERS = [family for family in FAMILIES.values() if family.config_class]
ROPE = {"rope_theta", "rope_scaling", "partial_rotary_factor"}  # what `read_rope` reads of every family


def config_fields(family: Family) -> dict[str, Any]:
    """The fields that the family's class defines beyond every config's, with their defaults."""
    assert family.config_class is not None
    config_class = getattr(transformers, family.config_class)
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return {f.name: f.default for f in dataclasses.fields(config_class) if f.name not in common}


@pytest.mark.parametrize("family", OF_TRANSFORMERS, ids=lambda family: family.model_type)
def test_every_field_of_transformers_has_one_place_and_its_default(family: Family) -> None:
    own = config_fields(family)
    known = set(family.defaults) | set(family.only) | family.harmless | HARMLESS | set(COMMON) | ROPE
    assert set(own) <= known, "transformers defines fields that the family has no place for"
    assert not set(family.defaults) & family.harmless
    for name, default in family.defaults.items():
        # head_dim of Qwen2 and the like: read by the model though its config class does not define it.
        assert own.get(name) == default, name
    assert not set(family.hidden_defaults) & set(own)
    theta = getattr(getattr(transformers, family.config_class or ""), "default_theta", DEFAULT_THETA)
    assert family.default_theta == (theta["global"] if isinstance(theta, dict) else theta)
    for name, only in {**COMMON, **family.only}.items():
        if name in own and name not in family.harmless | family.own:
            assert own[name] is None or own[name] in only.values, f"the default of {name} would be refused"
            assert name in family.defaults or own[name] is None, f"{name} needs transformers' default"


def test_fields_of_every_config_and_of_generation_are_known() -> None:
    generation = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    common = {name for name in PreTrainedConfig().to_dict() if not name.startswith("_")}
    assert generation | common <= HARMLESS | set(COMMON)
    assert not HARMLESS & set(COMMON)


def test_a_family_has_a_reader_and_a_table() -> None:
    assert set(FAMILIES) == set(RULES)
    assert all(name == family.model_type for name, family in FAMILIES.items())
