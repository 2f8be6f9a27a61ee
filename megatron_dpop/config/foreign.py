"""A config of TRL or LLaMA-Factory as one of ours: what has a counterpart, and by name what has none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoint_convert.rules.adapters import LINEARS, linears_of_module
from dpop_base.errors import UserError
from megatron_dpop.config.foreign_loss import LOSS_KEYS, convert_loss, number_of

_LLAMA_FACTORY_S = ("stage", "finetuning_type", "cutoff_len", "pref_loss", "dataset_dir", "template")
WEIGHTS_ASSUMED = "data.train.weight: a share of each dataset, drawn by our own seed"
_SCHEDULES = {
    "cosine": "cosine",
    "cosine_with_min_lr": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
}
_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # in Megatron one linear layer with others of these
# What says nothing of the result: how a library works, or what it shows.
_WITHOUT_EFFECT = {
    *("do_train", "do_eval", "do_predict", "overwrite_output_dir", "overwrite_cache", "preprocessing_num_workers"),
    *("dataset_num_proc", "dataloader_num_workers", "ddp_timeout", "plot_loss", "log_level", "logging_first_step"),
    *("gradient_checkpointing_kwargs", "per_device_eval_batch_size", "remove_unused_columns", "save_only_model"),
    *("logging_strategy", "attn_implementation", "flash_attn", "use_flash_attention_2", "disable_tqdm"),
    *("precompute_ref_log_probs", "torch_dtype", "dtype"),
}
# What is read below.
_READ = {
    *LOSS_KEYS,
    *("stage", "finetuning_type", "use_peft", "dataset_mixer", "dataset_mixture", "dataset_splits", "dataset_name"),
    *("dataset_config", "dataset_train_split", "dataset_test_split", "dataset", "eval_dataset", "dataset_dir"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs"),
    *("gradient_checkpointing", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio"),
    *("adam_beta1", "adam_beta2", "optim", "lora_r", "lora_rank", "lora_alpha", "lora_dropout", "lora_target"),
    *("lora_target_modules", "bf16", "fp16", "report_to", "eval_strategy", "evaluation_strategy", "save_strategy"),
}
_ADAMW = ("adamw", "adamw_hf", "adamw_torch", "adamw_torch_fused", "adamw_apex_fused")
_EVERY_LINEAR = (None, "all", "all-linear")
_RENAMED: dict[str, str] = {
    "model_name_or_path": "model.path",
    "tokenizer_name_or_path": "model.tokenizer",
    "ref_model": "reference.model",
    "learning_rate": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "max_grad_norm": "optimizer.clip_norm",
    "adam_epsilon": "optimizer.eps",
    "eval_steps": "train.validate_every",
    "seed": "train.seed",
    "max_length": "data.max_tokens",
    "cutoff_len": "data.max_tokens",
    "save_steps": "checkpoint.every",
    "save_total_limit": "checkpoint.keep",
    "logging_steps": "logging.every",
    "output_dir": "run.dir",
    "run_name": "logging.wandb.name",
}
_WHOLE = ("eval_steps", "seed", "max_length", "cutoff_len", "save_steps", "save_total_limit", "logging_steps")


@dataclass
class Converted:
    """Our config as a tree, what was assumed, and what has no counterpart."""

    trainer: str
    config: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def put(self, dotted: str, value: Any) -> None:
        *sections, key = dotted.split(".")
        place = self.config
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value


def convert(tree: Mapping[str, Any], *, gpus: int) -> Converted:
    """Raises UserError where it is no such config, or one of a training that is not ours."""
    is_llama_factory = any(key in tree for key in _LLAMA_FACTORY_S)
    if not is_llama_factory and "learning_rate" not in tree and "model_name_or_path" not in tree:
        raise UserError("config from: neither a TRL nor a LLaMA-Factory config; it has no model_name_or_path")
    found = Converted("LLaMA-Factory" if is_llama_factory else "TRL")
    for key in _RENAMED:
        if tree.get(key) is not None:
            _rename(found, key, tree[key])
    if "model_name_or_path" not in tree:
        found.assumed.append("model.path: the file names no model; set it")
        found.put("model.path", "MODEL")
    found.put("run.dir", str(tree.get("output_dir") or "runs/converted"))
    for part in (_data, _loss, _length, _optimizer, _lora, _rest):
        part(found, tree, gpus)
    known = {*_RENAMED, *_WITHOUT_EFFECT, *_READ}
    found.left_out += [f"{key}: {value!r}" for key, value in tree.items() if key not in known and value is not None]
    if found.config.get("logging", {}).get("wandb", {}).keys() == {"name"}:
        del found.config["logging"]["wandb"]
    return found


def _rename(found: Converted, key: str, value: Any) -> None:
    """YAML reads 5e-7 as text."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    is_share = key in _WHOLE and number is not None and number < 1 and key != "seed"
    if is_share:  # of the run, as transformers takes it
        found.left_out.append(f"{key}: {value!r}, a share of the run: give {_RENAMED[key]} in steps")
    elif number is not None:
        found.put(_RENAMED[key], int(number) if key in _WHOLE else number)
    elif isinstance(value, str):
        found.put(_RENAMED[key], value)
    else:
        found.left_out.append(f"{key}: {value!r}")


def _data(found: Converted, tree: Mapping[str, Any], gpus: int) -> None:
    """What is trained on: alignment-handbook's mixer with its splits, TRL's name, LLaMA-Factory's names."""
    mixer, mixture = tree.get("dataset_mixer"), tree.get("dataset_mixture")
    if isinstance(mixture, dict) and isinstance(mixture.get("datasets"), list):
        _mixture(found, mixture)
    elif isinstance(mixer, dict):
        train, test = _splits(tree)
        found.put(
            "data.train", [{"path": name, "split": train, "weight": float(share)} for name, share in mixer.items()]
        )
        if test is not None:
            found.put("data.validation", [{"path": name, "split": test} for name in mixer])
        if any(float(share) != 1 for share in mixer.values()):
            found.assumed.append(WEIGHTS_ASSUMED)
    elif tree.get("dataset_name"):
        source = {"path": tree["dataset_name"]} | _subset(tree.get("dataset_config"))
        is_file = Path(str(tree["dataset_name"])).is_file()
        found.put("data.train", [source if is_file else source | {"split": tree.get("dataset_train_split", "train")}])
        if is_file:
            found.left_out.append("dataset_name: a file has no splits; hold pairs out with `data split`")
        elif _strategy(tree, "eval") in ("steps", "epoch"):
            found.put("data.validation", [source | {"split": tree.get("dataset_test_split", "test")}])
    elif tree.get("dataset"):
        for theirs, ours in (("dataset", "data.train"), ("eval_dataset", "data.validation")):
            if names := [name.strip() for name in str(tree.get(theirs) or "").split(",") if name.strip()]:
                found.put(ours, [{"path": name} for name in names])
                found.assumed.append(f"{ours}: names of dataset_info.json; give each one's file or hub name there")
    else:
        found.put("data.train", "PAIRS")
        found.assumed.append("data.train: the file names no data; set it")
    if found.trainer == "TRL":
        found.config["data"].setdefault("max_tokens", 1024)
    else:
        found.config["data"].setdefault("max_tokens", 2048)
    found.put("data.row_tokens", max(8192, 2 * int(found.config["data"]["max_tokens"])))
    found.put("data.too_long", "truncate_prompt")
    found.assumed.append("data.too_long: truncate_prompt, from the prompt's start; they cut elsewhere, or both sides")


def _mixture(found: Converted, mixture: Mapping[str, Any]) -> None:
    """What alignment-handbook and TRL's scripts train on today."""
    sources = []
    for entry in mixture["datasets"]:
        if not isinstance(entry, dict) or not (name := entry.get("id") or entry.get("path")):
            raise UserError(f"config from: dataset_mixture: {entry!r} names no dataset; give its id")
        source = {"path": name, "split": entry.get("split") or "train"} | _subset(entry.get("config"))
        if entry.get("weight") is not None:
            source["weight"] = number_of(entry, "weight", 1.0)
        sources.append(source)
        # Columns are those of the dataset's format, which is recognised (docs/data.md).
        read = {"id", "path", "split", "config", "weight", "columns"}
        found.left_out += [f"dataset_mixture.datasets.{key}: {entry[key]!r}" for key in entry.keys() - read]
    found.put("data.train", sources)
    if any(source.get("weight", 1.0) != 1 for source in sources):
        found.assumed.append(WEIGHTS_ASSUMED)
    if mixture.get("test_split_size"):
        found.left_out.append(
            f"dataset_mixture.test_split_size: {mixture['test_split_size']!r}; hold pairs out with `data split`"
        )
    others = [key for key in mixture if key not in ("datasets", "test_split_size")]
    found.left_out += [f"dataset_mixture.{key}: {mixture[key]!r}" for key in others]


def _subset(name: Any) -> dict[str, Any]:
    return {} if name in (None, "default") else {"subset": name}


def _strategy(tree: Mapping[str, Any], of: str) -> str:
    """`steps`, `epoch` or `no`, which YAML reads as false; nothing where the file is silent."""
    value = tree.get(f"{of}_strategy", tree.get("evaluation_strategy") if of == "eval" else None)
    return {None: "", False: "no"}.get(value, str(value))


def _splits(tree: Mapping[str, Any]) -> tuple[str, str | None]:
    splits = tree.get("dataset_splits") or ["train"]
    return str(splits[0]), str(splits[1]) if len(splits) > 1 else None


def _loss(found: Converted, tree: Mapping[str, Any], gpus: int) -> None:
    found.config["loss"] = convert_loss(tree, found.assumed.append)


def _length(found: Converted, tree: Mapping[str, Any], gpus: int) -> None:
    default = 8.0 if "per_device_train_batch_size" not in tree else 1.0
    of_a_gpu = number_of(tree, "per_device_train_batch_size", default) * number_of(
        tree, "gradient_accumulation_steps", 1
    )
    found.put("train.global_batch_pairs", int(of_a_gpu * gpus))
    found.assumed.append(
        f"train.global_batch_pairs: {int(of_a_gpu)} on each of {gpus} GPUs; --gpus sets another number"
    )
    steps = number_of(tree, "max_steps", -1)
    if steps > 0:
        found.put("train.steps", int(steps))
    else:
        found.put("train.epochs", number_of(tree, "num_train_epochs", 3.0))
    if tree.get("gradient_checkpointing"):
        found.put("train.recompute", "full")
    found.config.setdefault("train", {}).setdefault("seed", 42)
    if tree.get("eval_steps") is not None and "validation" not in found.config.get("data", {}):
        found.left_out.append("eval_steps: there is no validation data; set data.validation and train.validate_every")
        found.config["train"].pop("validate_every", None)
    for of, key in (("eval", "train.validate_every"), ("save", "checkpoint.every")):
        if (strategy := _strategy(tree, of)) not in ("", "steps", "no"):
            found.left_out.append(f"{of}_strategy: {strategy!r}; give {key} in steps")
    if _strategy(tree, "eval") == "no":
        found.config["train"].pop("validate_every", None)
    if _strategy(tree, "save") == "no":
        found.left_out.append("save_strategy: 'no'; a run is saved all the same, as checkpoint.every says")


def _optimizer(found: Converted, tree: Mapping[str, Any], gpus: int) -> None:
    """What both take from transformers where the file is silent: 5e-5 (TRL's DPO: 1e-6), linear, no warm-up."""
    section: dict[str, Any] = found.config.setdefault("optimizer", {})
    section.setdefault("lr", 1e-6 if found.trainer == "TRL" else 5e-5)
    theirs = str(tree.get("lr_scheduler_type", "linear"))
    section["schedule"] = _SCHEDULES.get(theirs, "cosine")
    options = dict(tree.get("lr_scheduler_kwargs") or {})
    if theirs == "cosine_with_min_lr":
        share = number_of(options, "min_lr_rate", 0.0)
        section["min_lr"] = number_of(options, "min_lr", share * section["lr"])
        options = {key: value for key, value in options.items() if key not in ("min_lr", "min_lr_rate")}
    found.left_out += [f"lr_scheduler_kwargs.{key}: {value!r}" for key, value in options.items()]
    if theirs not in _SCHEDULES:
        found.left_out.append(f"lr_scheduler_type: {theirs!r}; cosine is taken in its place")
    warmup = number_of(tree, "warmup_steps", 0)
    if warmup >= 1:
        section["warmup_steps"] = int(warmup)
    else:  # transformers 5 takes a share here
        section["warmup_share"] = warmup or number_of(tree, "warmup_ratio", 0.0)
    betas = [number_of(tree, "adam_beta1", 0.9), number_of(tree, "adam_beta2", 0.999)]
    if betas != [0.9, 0.999]:
        section["betas"] = betas
    if tree.get("optim", "adamw") not in _ADAMW:
        found.left_out.append(f"optim: {tree['optim']!r}; AdamW is taken in its place")


def _lora(found: Converted, tree: Mapping[str, Any], gpus: int) -> None:
    kind = tree.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        raise UserError(f"config from: finetuning_type: {kind!r} has no counterpart; full and lora are known")
    if not (tree.get("use_peft") if found.trainer == "TRL" else kind == "lora"):
        return
    rank = int(
        number_of(tree, "lora_r" if found.trainer == "TRL" else "lora_rank", 16 if found.trainer == "TRL" else 8)
    )
    alpha = number_of(tree, "lora_alpha", 32 if found.trainer == "TRL" else 2 * rank)
    dropout = number_of(tree, "lora_dropout", 0.05 if found.trainer == "TRL" else 0.0)
    found.config["lora"] = {"rank": rank, "alpha": alpha, "dropout": dropout}
    key = "lora_target_modules" if found.trainer == "TRL" else "lora_target"
    asked = tree.get(key)
    modules = [] if asked in _EVERY_LINEAR else asked if isinstance(asked, list) else str(asked).split(",")
    holding = {str(module).strip(): linears_of_module(str(module).strip()) for module in modules}
    targets = [linear for linear in LINEARS if any(linear in linears for linears in holding.values())]
    if targets and all(holding.values()):
        found.config["lora"]["targets"] = targets
    elif modules:
        unknown = ", ".join(module for module, linears in holding.items() if not linears)
        found.left_out.append(f"{key}: {asked!r}: {unknown} is no linear layer of a model that is known here")
    named = ", ".join(targets) if "targets" in found.config["lora"] else "all linear layers"
    others = [name for name in _FUSED if name not in holding and {*linears_of_module(name)} & {*targets}]
    also = f"; {', '.join(others)} too" if others else ""
    found.assumed.append(f"lora.targets: {named}, with one A for those that Megatron fuses{also} (docs/lora.md)")


def _rest(found: Converted, tree: Mapping[str, Any], gpus: int) -> None:
    if tree.get("fp16") or tree.get("bf16") is False:
        found.left_out.append(f"{'fp16' if tree.get('fp16') else 'bf16: False'}; precision.params is bf16")
    reports = tree.get("report_to") or []
    if "wandb" in ([reports] if isinstance(reports, str) else reports):
        found.put("logging.wandb.project", "huggingface")
    defaults: Mapping[str, Callable[[dict[str, Any]], object]] = {
        "checkpoint": lambda section: section.setdefault("every", 500),
        "logging": lambda section: section.setdefault("every", 10),
    }
    for name, fill in defaults.items():
        fill(found.config.setdefault(name, {}))
