"""Recipes: one YAML file for everything that a published model's training needs, and the configs that it stands for.

A recipe has `config`, what all stages share, and either `stages`, each of which begins with the weights of the one
before, or `runs`, which are independent. Two keys are for plans: `gpus`, the number that it is made for, and `shape`,
what the model's config.json says, where the model itself is not at hand.
"""

import copy
from pathlib import Path
from typing import Any

from dpop_base.errors import UserError
from dpop_base.run_names import CHECKPOINTS

Tree = dict[str, Any]


def is_recipe(tree: Tree) -> bool:
    return "stages" in tree or "runs" in tree


def is_chain(recipe: Tree) -> bool:
    """Whether each of its configs begins with the weights of the one before."""
    return "stages" in recipe


def expand(recipe: Tree) -> list[Tree]:
    """The configs of a recipe, in order, with a name in each (`run.dir` ends in it)."""
    configs: list[Tree] = []
    stages = recipe["stages"] if is_chain(recipe) else recipe["runs"]
    for number, stage in enumerate(stages, start=1):
        own = {section: value for section, value in stage.items() if section != "name"}
        config = merge(recipe["config"], own)
        folder = Path(config["run"]["dir"])
        config["run"]["dir"] = str(folder / (f"{number}-{stage['name']}" if is_chain(recipe) else stage["name"]))
        if is_chain(recipe):
            config.setdefault("checkpoint", {}).setdefault("export_hf", number == len(stages))
            if configs:
                config["model"]["path"] = str(Path(configs[-1]["run"]["dir"]) / CHECKPOINTS)
        configs.append(config)
    return configs


def merge(tree: Tree, over: Tree) -> Tree:
    """`over` key by key over `tree`; another loss takes nothing from the one before."""
    merged = copy.deepcopy(tree)
    for key, value in over.items():
        whole = not isinstance(value, dict) or not isinstance(merged.get(key), dict) or key == "loss"
        merged[key] = copy.deepcopy(value) if whole else merge(merged[key], value)
    return merged


def check_paths(config: object, where: str, why: str) -> None:
    """Raises UserError where a config names no model or no folder for its run."""
    for section, key in (("model", "path"), ("run", "dir")):
        given = config.get(section) if isinstance(config, dict) else None
        if not isinstance(given, dict) or not isinstance(given.get(key), str):
            raise UserError(f"{where}{section}.{key} is missing; {why}")


def check_recipe(tree: Tree, *, origin: str) -> None:
    """Raises UserError where something that every recipe has is missing, or is of another kind."""
    check_paths(tree.get("config"), f"{origin}: config.", "a recipe has it for all its stages")
    if not isinstance(tree.get("gpus", 1), int):
        raise UserError(f"{origin}: gpus: {tree['gpus']} is no number of GPUs; give a whole one")
    name = "stages" if is_chain(tree) else "runs"
    stages = tree[name]
    named = isinstance(stages, list) and stages and all(isinstance(s, dict) and s.get("name") for s in stages)
    if not named:
        raise UserError(f"{origin}: {name} is not a list of stages with a name each; give at least one")
