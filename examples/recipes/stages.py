"""A recipe's stages as configs that `megatron-dpop train` takes.

    python examples/recipes/stages.py RECIPE                  writes RUN.DIR/configs/1-NAME.yaml, 2-...
    python examples/recipes/stages.py --tiny FOLDER RECIPE    the same with the recipe's `tiny` override; models, data
                                                              and runs are in FOLDER, and the first two are made there
    python examples/recipes/stages.py CONFIG CONFIG ...       configs of your own: writes nothing

`megatron_dpop.config.recipes` says what a recipe is. Prints a line for each stage: its config's path, its run.dir and,
where its weights are an earlier stage's, the model that the chain began with; tabs between them.
"""

import argparse
import sys
from pathlib import Path

import yaml

from dpop_base.errors import UserError
from megatron_dpop.config.load import read_tree
from megatron_dpop.config.recipes import Tree, check_paths, check_recipe, expand, is_recipe, merge


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", type=Path, metavar="FOLDER", help="a model and data that a laptop trains in seconds")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    trees = [(path, read_tree(path)) for path in arguments.files]
    for path, tree in trees:
        check(tree, path)
    if not all(is_recipe(tree) for _, tree in trees):
        configs = trees
    elif len(trees) == 1:
        stages = tiny_stages(trees[0][1], arguments.tiny) if arguments.tiny else expand(trees[0][1])
        configs = write(stages)
    else:
        parser.error("give one recipe, or configs")
    for path, run, start in chain(configs):
        print(f"{path}\t{run}\t{start}")
    return 0


def check(tree: Tree, path: Path) -> None:
    """Raises UserError where a recipe, or a config of one stage, lacks what is read of it here."""
    if is_recipe(tree):
        check_recipe(tree, origin=str(path))
    else:
        check_paths(tree, f"{path}: ", "each stage's config has it")


def tiny_stages(recipe: Tree, folder: Path) -> list[Tree]:
    """The recipe's stages with its `tiny` override, all of their files in `folder`, where model and data are made."""
    from tiny import write_data, write_model

    if not isinstance(recipe.get("tiny"), dict):
        raise UserError("--tiny: the recipe has no `tiny` override; add one, or leave --tiny out")
    configs = [relocate(merge(config, recipe["tiny"]["config"]), folder) for config in expand(recipe)]
    write_model(Path(configs[0]["model"]["path"]), recipe["tiny"]["model"])
    for config in configs:
        for source in [*sources(config, "train"), *sources(config, "validation")]:
            write_data(Path(source["path"]), demonstrations=config["loss"]["name"] == "sft")
    return configs


def relocate(config: Tree, folder: Path) -> Tree:
    """The config with every path in `folder`."""
    moved = merge(config, {})
    for section, key in (("model", "path"), ("reference", "cache"), ("run", "dir")):
        if key in moved.get(section, {}):
            moved[section][key] = str(folder / moved[section][key])
    for split in ("train", "validation"):
        if split in moved["data"]:
            moved["data"][split] = [
                {**source, "path": str(folder / source["path"])} for source in sources(config, split)
            ]
    return moved


def sources(config: Tree, split: str) -> list[Tree]:
    given = config["data"].get(split, [])
    items = given if isinstance(given, list) else [given]
    return [{"path": item} if isinstance(item, str) else item for item in items]


def write(configs: list[Tree]) -> list[tuple[Path, Tree]]:
    """Each beside its run: `RUN.DIR/../configs/NAME.yaml`."""
    written = []
    for config in configs:
        run = Path(config["run"]["dir"])
        path = run.parent / "configs" / f"{run.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        written.append((path, config))
    return written


def chain(configs: list[tuple[Path, Tree]]) -> list[tuple[Path, str, str]]:
    """(config's path, run.dir, the model that the chain began with, or "" where it begins here)."""
    began: dict[Path, str] = {}  # checkpoints that a stage will leave, and the model at the beginning of its chain
    lines = []
    for path, config in configs:
        model, run = config["model"]["path"], config["run"]["dir"]
        start = began.get(Path(model), "")
        began[Path(run) / "checkpoints"] = start or model
        lines.append((path, run, start))
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"stages.py: error: {error}", file=sys.stderr)
        sys.exit(2)
