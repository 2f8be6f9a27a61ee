"""Rotary settings as transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`) spell them."""

from typing import Any

from checkpoint_convert.architectures.architecture import RopeScaling
from checkpoint_convert.architectures.fields import Fields, Only

DEFAULT_THETA = 10_000.0  # what transformers assumes where a config names none (Llama 1 and 2)


def read_rope(fields: Fields) -> tuple[float, RopeScaling | None]:
    """Base frequency and scaling; UserError for a kind of scaling that Megatron-Core does not reproduce."""
    parameters = dict(_table(fields, "rope_scaling"))
    parameters.update(_table(fields, "rope_parameters"))
    theta = parameters.pop("rope_theta", None)
    if theta is None:
        theta = DEFAULT_THETA if fields.get("rope_theta") is None else fields.number("rope_theta")
    fields.seen.add("rope_theta")
    fields.require("partial_rotary_factor", Only((1.0,), "part of each head would keep its positions unrotated"))
    partial = parameters.pop("partial_rotary_factor", 1.0)
    if not isinstance(theta, int | float) or isinstance(theta, bool) or theta <= 0 or partial != 1.0:
        raise fields.error(
            f"rope_theta is {theta!r} and partial_rotary_factor {partial!r}", "only theta > 0 and 1.0 are"
        )
    return float(theta), _scaling(fields, parameters)


def _table(fields: Fields, name: str) -> dict[str, Any]:
    value = fields.get(name)
    value = {} if value is None else value
    if not isinstance(value, dict):
        raise fields.error(f"{name} is {value!r}", "it must be a table or null")
    return value


def _scaling(fields: Fields, parameters: dict[str, Any]) -> RopeScaling | None:
    kinds = {parameters.pop(name) for name in ("rope_type", "type") if name in parameters}
    kind = kinds.pop() if len(kinds) == 1 else ("default" if not kinds else str(sorted(map(str, kinds))))
    if kind == "default":
        if parameters:
            raise fields.error(f"rope settings {sorted(parameters)} need a rope_type", "name it or remove them")
        return None
    if kind != "llama3":
        raise fields.error(f"rope scaling of type {kind!r} is not supported", "only 'default' and 'llama3' are")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    missing, unknown = sorted(set(names) - set(parameters)), sorted(set(parameters) - set(names))
    if missing or unknown:
        raise fields.error(
            f"rope scaling 'llama3' lacks {missing} and has the unknown {unknown}", f"it needs {list(names)}"
        )
    values = [parameters[name] for name in names]
    if any(isinstance(v, bool) or not isinstance(v, int | float) or v <= 0 for v in values):
        raise fields.error(f"rope scaling 'llama3' holds {values}", "they must be positive numbers")
    factor, low, high, original = values
    return RopeScaling(float(factor), float(low), float(high), int(original))
