"""The loss that a config of TRL or LLaMA-Factory trains with, as ours."""

from collections.abc import Callable, Mapping
from typing import Any

from dpop_base.errors import UserError

# loss_type of TRL and pref_loss of LLaMA-Factory.
_LOSSES = {
    "sigmoid": "dpo",
    "hinge": "hinge",
    "ipo": "ipo",
    "robust": "robust",
    "exo_pair": "exo",
    "nca_pair": "nca",
    "discopop": "discopop",
    "apo_zero": "apo_zero",
    "apo_down": "apo_down",
    "bco_pair": "bco",
    "sppo_hard": "sppo_hard",
    "orpo": "orpo",
    "simpo": "simpo",
}
LOSS_KEYS = {
    *("loss_type", "pref_loss", "loss_weights", "beta", "pref_beta", "simpo_gamma", "gamma_beta_ratio"),
    *("label_smoothing", "dpo_label_smoothing", "rpo_alpha", "pref_ftx", "ld_alpha", "discopop_tau"),
    *("desirable_weight", "undesirable_weight", "kto_chosen_weight", "kto_rejected_weight"),
}


def number_of(tree: Mapping[str, Any], key: str, default: float) -> float:
    value = tree.get(key)
    try:
        return default if value is None else float(value)
    except (TypeError, ValueError):
        raise UserError(f"config from: {key}: {value!r} is no number") from None


def convert_loss(tree: Mapping[str, Any], assume: Callable[[str], None]) -> dict[str, Any]:
    """Raises UserError for a loss that has no counterpart."""
    stage = tree.get("stage", "dpo")
    if stage not in ("dpo", "kto", "sft"):
        raise UserError(f"config from: stage: {stage!r} is no preference training; dpo, kto and sft are known")
    if stage != "dpo":
        return _one(stage, tree)
    theirs = tree.get("loss_type") or tree.get("pref_loss")
    if theirs is None and tree.get("gamma_beta_ratio") is not None:  # SimPO's own trainer
        return _one("simpo", tree)
    if theirs is None:
        assume("loss.name: dpo; the file names no loss_type, and would not for ORPO's, CPO's or KTO's trainer either")
    names = theirs if isinstance(theirs, list) else [theirs or "sigmoid"]
    return _one(_named(names[0]), tree) if len(names) == 1 else _sum(names, tree, assume)


def _named(theirs: Any) -> str:
    name = _LOSSES.get(theirs) if isinstance(theirs, str) else None
    if name is None:
        raise UserError(f"config from: loss {theirs!r} has no counterpart; docs/losses.md lists ours")
    return name


def _one(name: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    loss: dict[str, Any] = {"name": name}
    if name != "sft":
        loss["beta"] = number_of(tree, "beta" if "beta" in tree else "pref_beta", 0.1)
    if name == "simpo":
        ratio = tree.get("gamma_beta_ratio")
        by_ratio = loss["beta"] * number_of(tree, "gamma_beta_ratio", 0.0)
        loss["gamma"] = number_of(tree, "simpo_gamma", 0.5) if ratio is None else by_ratio
    if name == "kto":
        for ours, theirs in (("desirable_weight", "kto_chosen_weight"), ("undesirable_weight", "kto_rejected_weight")):
            loss[ours] = number_of(tree, ours if ours in tree else theirs, 1.0)
    if smoothing := number_of(tree, "label_smoothing" if "label_smoothing" in tree else "dpo_label_smoothing", 0.0):
        loss["label_smoothing"] = smoothing
    if nll := number_of(tree, "rpo_alpha" if "rpo_alpha" in tree else "pref_ftx", 0.0):
        loss["nll_weight"] = nll
    if tree.get("ld_alpha") is not None:
        loss["ld_alpha"] = number_of(tree, "ld_alpha", 1.0)
    if name == "discopop":
        loss["tau"] = number_of(tree, "discopop_tau", 0.05)
    return loss


def _sum(names: list[Any], tree: Mapping[str, Any], assume: Callable[[str], None]) -> dict[str, Any]:
    """TRL's several losses with their weights; its `sft` is the likelihood term of whichever loss stands first."""
    given = tree.get("loss_weights") or [1.0] * len(names)
    if not isinstance(given, list) or len(given) != len(names):
        raise UserError(f"config from: loss_weights: {given!r} are not one for each of loss_type, {names!r}")
    weights = [number_of({"loss_weights": weight}, "loss_weights", 1.0) for weight in given]
    pairs = [(name, weight) for name, weight in zip(names, weights, strict=True) if name != "sft"]
    likelihood = sum(weight for name, weight in zip(names, weights, strict=True) if name == "sft")
    if not pairs or any(weight <= 0 for _, weight in pairs):
        raise UserError(f"config from: loss {names!r} with loss_weights {given!r} has no counterpart")
    terms = [{**_one(_named(name), tree), "weight": weight} for name, weight in pairs]
    if likelihood:
        terms[0]["nll_weight"] = likelihood / terms[0]["weight"]
    if len(terms) > 1:
        return {"name": "sum", "terms": terms}
    (only,) = terms
    if (weight := only.pop("weight")) != 1:
        assume(f"loss: divided by its weight {weight:g}, which Adam's steps hardly see (clip_norm does)")
    return only
