"""The true shapes of the recipes' models, and folders that are those models but for their weights, which are holes."""

import json
from pathlib import Path
from typing import Any

import yaml

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from dpop_base.architectures import read_architecture
from examples.recipes.tiny import make_tokenizer

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
BF16_BYTES = 2


def shape_of(model: str) -> dict[str, Any]:
    """The shape that the recipes of a model state: all of them the same."""
    recipes = (yaml.safe_load(path.read_text()) for path in sorted(RECIPES.glob("*.yaml")))
    found = [recipe["shape"] for recipe in recipes if Path(recipe["config"]["model"]["path"]).name == model]
    assert found, model
    assert all(shape == found[0] for shape in found), model
    return dict(found[0])


def write_hollow_model(folder: Path) -> None:
    """config.json, a tokenizer, and a weights file of the true length that takes no space: all that a check reads."""
    from transformers import AutoConfig

    fields = shape_of(folder.name)
    theta = fields.pop("rope_theta")
    config = AutoConfig.for_model(
        fields.pop("model_type"), rope_parameters={"rope_type": "default", "rope_theta": theta}, **fields
    )
    config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    architecture = read_architecture(folder)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in from_megatron(RULES[architecture.family], architecture):
        begin, entries = end, 1
        for size in tensor.shape:
            entries *= size
        end = begin + entries * BF16_BYTES
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
