"""
Published models by their own `config.json`: what we read of it is what transformers reads, and the table in
docs/conversion.md says which are accepted. `published/*.json` maps a model to its `config`, to `parameters` where
its card states the exact number, to `refused`, the text that a refusal must hold, and to `source`, a public copy.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from checkpoint_convert.rules.families import RULES
from checkpoint_convert.rules.rule import from_megatron
from dpop_base.architectures import Architecture, read_architecture
from dpop_base.architectures.families import FAMILIES
from dpop_base.errors import UserError

PUBLISHED: dict[str, dict[str, Any]] = {
    name: entry
    for path in sorted((Path(__file__).parents[1] / "published").glob("*.json"))
    for name, entry in json.loads(path.read_text()).items()
}
ACCEPTED = [name for name, entry in PUBLISHED.items() if "refused" not in entry]
REFUSED = [name for name, entry in PUBLISHED.items() if "refused" in entry]
DOCS = Path(__file__).parents[3] / "docs" / "conversion.md"


def folder(tmp_path: Path, name: str) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]["config"]))
    return tmp_path


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted_and_read_as_transformers_reads_it(name: str, tmp_path: Path) -> None:
    a = read_architecture(folder(tmp_path, name))
    shapes = {recipe.name: recipe.shape for recipe in from_megatron(RULES[a.family], a)}
    expected = PUBLISHED[name].get("parameters")
    assert expected is None or expected == sum(torch.Size(shape).numel() for shape in shapes.values())
    config_class = FAMILIES[a.family].config_class
    if config_class is None:
        return
    config = getattr(transformers, config_class).from_dict(PUBLISHED[name]["config"])
    assert config.num_hidden_layers == a.num_layers
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    assert rope["rope_theta"] == a.rope_theta
    assert config.rms_norm_eps == a.norm_epsilon
    # Beyond its original length longrope is not computed; dynamic scaling does nothing within it.
    of_longrope = rope["rope_type"] == "longrope"
    assert a.max_position_embeddings == (
        config.original_max_position_embeddings if of_longrope else config.max_position_embeddings
    )
    assert getattr(config, "sliding_window", None) == a.sliding_window
    assert (rope["rope_type"] in ("default", "dynamic")) is (a.rope_scaling is None)
    assert rope.get("partial_rotary_factor", 1.0) == a.rotary_percent
    sliding = [kind == "sliding_attention" for kind in getattr(config, "layer_types", None) or []]
    assert not sliding or sliding == [a.window(layer) is not None for layer in range(a.num_layers)]
    # Two layers of the model itself, without memory: every name and shape.
    config.num_hidden_layers = 2
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:2]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    of_model = {name: tuple(value.shape) for name, value in model.named_parameters()}
    of_model = single_experts(of_model, a)
    assert of_model == {n: s for n, s in shapes.items() if ".layers." not in n or int(n.split(".")[2]) < 2}


def single_experts(of_model: dict[str, tuple[int, ...]], a: Architecture) -> dict[str, tuple[int, ...]]:
    """With the names of published checkpoints, where transformers 5 holds a layer's experts in two tensors."""
    is_mixtral = a.family == "mixtral"
    gate, up, down = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    found = {}
    for name, shape in of_model.items():
        saved = name.replace(".mlp.", ".block_sparse_moe.") if is_mixtral else name
        experts, _, last = saved.rpartition(".")
        if experts.endswith(".experts"):
            parts = (gate, up) if last == "gate_up_proj" else (down,)
            one = (shape[1] // len(parts), shape[2])
            found |= {f"{experts}.{expert}.{part}.weight": one for expert in range(shape[0]) for part in parts}
        else:
            found[saved] = shape
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read_architecture(folder(tmp_path, name))
    assert PUBLISHED[name]["refused"] in str(raised.value)


def test_the_documentation_lists_exactly_these() -> None:
    rows = {}
    for line in DOCS.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[2].startswith(("accepted", "refused")):
            rows[cells[0]] = cells[2]
    assert set(rows) == set(PUBLISHED)
    for name, said in rows.items():
        refused = PUBLISHED[name].get("refused")
        assert said.startswith("accepted" if refused is None else "refused"), name
        assert refused is None or refused in said.replace("`", ""), name
