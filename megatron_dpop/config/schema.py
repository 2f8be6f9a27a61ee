"""Every key of a config file, its type, its default and its bounds."""

import datetime
import difflib
import math
from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from checkpoint_convert.rules.adapters import LINEARS, linears_of_module
from dpop_base.choices import BadRows, TooLong
from megatron_dpop.config.losses import SECTION, DpopConfig, LossConfig
from megatron_dpop.config.numbers import (
    BelowOne,
    Natural,
    NonNegativeReal,
    Positive,
    PositiveReal,
    PositiveShare,
    Share,
    Whole,
)


def _as_sources(value: Any) -> Any:
    """`data.train: pairs.parquet` is short for `[{path: pairs.parquet}]`."""
    items = [value] if isinstance(value, str | dict) else value
    if items is None:
        return []
    if not isinstance(items, list | tuple):
        raise ValueError("a file's name, or a list of them, is needed")
    return [{"path": item} if isinstance(item, str) else item for item in items]


@dataclass(frozen=True, config=SECTION)
class ModelConfig:
    path: str  # Hugging Face folder, Megatron checkpoint folder, or a model's name on the hub
    tokenizer: str | None = None  # null: the model's own


@dataclass(frozen=True, config=SECTION)
class ParallelConfig:
    tensor: Positive = 1  # ranks that share every weight matrix
    pipeline: Positive = 1  # stages of layers
    virtual_pipeline: Annotated[Whole, Field(ge=2)] | None = None  # model chunks of each pipeline stage, interleaved
    first_stage_layers: Positive | None = None  # of the stage that holds the embedding; null: as many as the others
    last_stage_layers: Positive | None = None  # of the stage that holds the output layer
    context: Positive = 1  # ranks that share a row's tokens
    expert: Positive = 1  # ranks that share a layer's experts, each holding whole ones
    expert_tensor: Positive = 1  # ranks that share every expert's matrices, as tensor shares all others
    sequence: bool = True  # sequence parallelism; has an effect where tensor > 1
    overlap: bool | None = None  # data-parallel communication with computation; null: on GPUs
    overlap_tensor: bool = False  # tensor-parallel communication too; every row then has data.row_tokens; needs GPUs
    pad_heads: bool = False  # adds zero heads where tensor does not divide the model's heads

    @property
    def model_parallel(self) -> int:
        """Ranks that share a row: those of one data-parallel replica."""
        return self.tensor * self.pipeline * self.context

    @property
    def fewest_ranks(self) -> int:
        """A run has a multiple of so many ranks. Experts may be shared by those of several replicas."""
        return self.pipeline * math.lcm(self.tensor * self.context, self.expert * self.expert_tensor)


@dataclass(frozen=True, config=SECTION)
class PrecisionConfig:
    """How numbers are kept. `fp8` is for layers' products; output layer and log-probabilities stay bf16 and fp32."""

    params: Literal["bf16", "fp32"] = "bf16"  # of weights and activations; optimizers keep fp32 masters
    fp8: Literal["tensorwise", "blockwise", "delayed"] | None = None  # Transformer Engine's recipe
    fp8_params: bool = False  # keeps and gathers those layers' weights in FP8
    bf16_end_layers: Natural = 0  # first and last layers that stay in bf16


def _linear(name: str) -> str:
    """One of Megatron's linears; a Hugging Face module's name is refused with the linear that holds it."""
    if name in LINEARS:
        return name
    known = ", ".join(LINEARS)
    if holding := linears_of_module(name):
        raise ValueError(f"it is part of Megatron's {' and '.join(holding)}; name that instead ({known} are known)")
    near = difflib.get_close_matches(name, LINEARS, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}? ({known} are known)" if near else f"use some of {known}"
    raise ValueError(f"no linear layer has that name; {fix}")


@dataclass(frozen=True, config=SECTION)
class LoraConfig:
    """Low-rank adapters on frozen weights: W x + alpha / rank * B A x."""

    rank: Positive = 16  # rows of A and columns of B
    alpha: PositiveReal = 32.0  # B A is multiplied by alpha / rank
    dropout: BelowOne = 0.0  # of the adapters' inputs
    targets: Annotated[tuple[Annotated[str, AfterValidator(_linear)], ...], Field(min_length=1)] = LINEARS


@dataclass(frozen=True, config=SECTION)
class ExpertsConfig:
    """How the routers of a model with experts are trained."""

    freeze_router: bool = False  # routers' weights stay as they are
    balance_loss: NonNegativeReal = 0.0  # weight of each layer's loss for even loads, a mean over pairs
    z_loss: NonNegativeReal = 0.0  # weight of each layer's loss for small router logits, a mean over pairs


@dataclass(frozen=True, config=SECTION)
class SourceConfig:
    path: str  # a file, a pattern (shards/*.parquet), a folder, or a dataset's name on the hub
    weight: PositiveReal = 1.0  # how often each example occurs in one pass over the data
    name: str | None = None  # of the source's own metrics; null: the file's stem
    split: str | None = None  # of a folder or hub dataset that has several
    subset: str | None = None  # of a folder or hub dataset that has several configurations
    revision: str | None = None  # of a hub dataset: branch, tag or commit
    columns: dict[str, str] = field(default_factory=dict)  # role: column, where names do not tell (docs/data.md)


Sources = Annotated[tuple[SourceConfig, ...], BeforeValidator(_as_sources)]


def _as_day(value: Any) -> Any:
    """YAML reads 2026-11-26 as a date."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    try:
        return value if value is None else datetime.datetime.fromisoformat(value).isoformat().removesuffix("T00:00:00")
    except (TypeError, ValueError):
        raise ValueError("give a date, written as 2026-11-26") from None


def _as_arguments(value: Any) -> Any:
    """What a chat template can be given: plain values, with dates as text."""
    if isinstance(value, dict):
        return {key: _as_arguments(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_as_arguments(entry) for entry in value]
    return value.isoformat() if isinstance(value, datetime.date) else value


def _as_names(value: Any) -> Any:
    """`data.unscored: special` is short for `[special]`."""
    return [value] if isinstance(value, str) else [] if value is None else value


Day = Annotated[str | None, BeforeValidator(_as_day)]
TemplateArguments = Annotated[dict[str, Any], BeforeValidator(_as_arguments)]


@dataclass(frozen=True, config=SECTION)
class DataConfig:
    train: Annotated[Sources, Field(min_length=1)]  # blended by their weights
    validation: Sources = ()  # empty: none is done
    max_tokens: Positive = 2048  # of a prompt and one completion
    row_tokens: Positive = 8192  # capacity of a packed row
    share_prefix: bool = True  # what a pair's completions begin with in common passes the model once
    chat_template: str | None = None  # null: the tokenizer's; "none": plain text; else one's name, or a Jinja file
    chat_template_kwargs: TemplateArguments = field(default_factory=dict)  # for every row: {enable_thinking: false}
    template_date: Day = None  # what a chat template is told is today's date; null: the day on which the run began
    prompt_prefix: str = ""  # of plain text, before every prompt: worked examples, "Question: "
    answer_separator: str = ""  # of plain text, between prompt and answer: "\nAnswer: "
    unscored: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = ()  # tokens of answers that no loss sees
    too_long: TooLong = "stop"  # of examples over max_tokens
    bad_rows: BadRows = "stop"  # what is done about a row that cannot be used
    bad_rows_limit: Share = 0.01  # share of a source's rows; more stop the run anyway


@dataclass(frozen=True, config=SECTION)
class ReferenceConfig:
    model: str | None = None  # null: the starting weights
    cache: str | None = None  # null: beside the run


def _one_length(*keys: str) -> Callable[[Any], Any]:
    """Refuses a section that gives one length in two ways; a key that is null is not given."""

    def check(section: Any) -> Any:
        if not isinstance(section, dict):
            return section
        given = [key for key in keys if section.get(key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} say the same in two ways; leave one of them out, or set it to null"
            )
        return {key: value for key, value in section.items() if key not in keys or value is not None}

    return check


@dataclass(frozen=True, config=SECTION)
class OptimizerConfig:
    name: Literal["adamw"] = "adamw"
    lr: PositiveReal = 1.0e-6  # the schedule's peak; the default is TRL's for DPO
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    eps: PositiveReal = 1.0e-8
    weight_decay: NonNegativeReal = 0.0
    clip_norm: NonNegativeReal = 1.0  # 0: no clipping
    min_lr: NonNegativeReal = 0.0  # the schedule's end
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"  # of the learning rate after the warm-up
    warmup_steps: Natural | None = None  # from zero to lr; less than train.steps; null: as warmup_share says
    warmup_share: BelowOne | None = None  # of train.steps; null, as warmup_steps too: 0.1
    decay_share: PositiveShare = 0.1  # of train.steps, at the end, linearly; of schedule wsd
    state: Literal["fp32", "bf16"] = "fp32"  # precision of AdamW's moments; bf16 needs a GPU
    offload: bool = False  # keeps optimizer state and master weights in host memory; needs a GPU
    distributed: bool = True  # shards optimizer state over data-parallel ranks


@dataclass(frozen=True, config=SECTION)
class TrainConfig:
    steps: Positive = 1000  # optimizer steps
    epochs: PositiveReal | None = None  # passes over the data, in place of steps; the last step is a whole one
    global_batch_pairs: Positive = 64  # examples of a step, over all ranks
    validate_every: Positive | None = None  # null: before the first step and after the last
    recompute: Literal["none", "selective", "full"] = "none"  # by the backward pass: attention, whole layers
    offload_activations: bool = False  # to host memory, inputs of norms and linear_qkv; rows are whole; needs a GPU
    rerun: Literal["validate_results", "report_determinism_stats"] | None = None  # Megatron's diagnosis of bad steps
    deterministic: bool = False  # on GPUs, at some cost in speed; the CPU always is
    seed: Natural = 0  # of the data's order, dropout and adapters


OptimizerSection = Annotated[OptimizerConfig, BeforeValidator(_one_length("warmup_steps", "warmup_share"))]
TrainSection = Annotated[TrainConfig, BeforeValidator(_one_length("steps", "epochs"))]


@dataclass(frozen=True, config=SECTION)
class KernelsConfig:
    """What runs on GPUs; a run on the CPU takes none of these. `tools/gpu_check.py` compares them on a device."""

    fused: bool = True  # Triton kernels for the gate, rotary embedding and logits, and weight gradients added in fp32
    attention: Literal["flash", "cudnn"] = "flash"  # FlashAttention 2 of torch, or cuDNN through Transformer Engine


@dataclass(frozen=True, config=SECTION)
class BestConfig:
    """The checkpoint with the best validation is kept besides the newest, and exported in place of the last."""

    metric: str  # as metrics.jsonl names it: validation/rewards/accuracies, validation/source/NAME/loss, ...
    mode: Literal["max", "min"]  # whether more or less of it is better
    patience: Positive | None = None  # validations in a row without a better one that end the run; null: none do


@dataclass(frozen=True, config=SECTION)
class CheckpointConfig:
    every: Positive = 100  # steps
    keep: Positive = 3  # newest checkpoints that stay
    asynchronous: bool = Field(default=True, alias="async")  # training goes on while files are written
    export_hf: bool = True  # hf/ in the run's folder at the end
    best: BestConfig | None = None  # null: the newest are kept and the last is exported


def _as_wandb(value: Any) -> Any:
    """`logging.wandb: project` is short for `{project: project}`."""
    return {"project": value} if isinstance(value, str) else value


@dataclass(frozen=True, config=SECTION)
class WandbConfig:
    """Where Weights & Biases shows the run; its own variables (WANDB_MODE, WANDB_API_KEY, ...) hold too."""

    project: str
    entity: str | None = None  # user or team; null: the one that wandb is logged in as
    name: str | None = None  # null: the last part of run.dir


# What the health monitor looks for (`megatron_dpop.health.rules`).
RuleName = Literal[
    "chosen_below_reference",
    "penalty_everywhere",
    "reference_drift",
    "exploding_gradients",
    "accuracy_at_half",
    "validation_parting",
    "throughput_drop",
    "router_collapse",
]


def _as_rules(value: Any) -> Any:
    """`logging.stop_on: any` names all rules; one name is a list of one."""
    names = [value] if isinstance(value, str) else value
    return list(get_args(RuleName)) if names == ["any"] else [] if names is None else names


StopRules = Annotated[tuple[RuleName, ...], BeforeValidator(_as_rules)]


@dataclass(frozen=True, config=SECTION)
class LoggingConfig:
    every: Positive = 1
    tensorboard: bool = True
    wandb: Annotated[WandbConfig | None, BeforeValidator(_as_wandb)] = None  # a project's name, or these keys
    samples: Natural = 0  # held-out prompts that each validation answers, by the most likely tokens; into samples.jsonl
    sample_tokens: Positive = 64  # of such an answer at most; each costs a forward pass over the prompts
    stop_on: StopRules = ()  # rules of the health monitor that stop the run, or "any"; it always says what it sees


@dataclass(frozen=True, config=SECTION)
class RunConfig:
    dir: str = "runs/default"  # everything that a run writes


@dataclass(frozen=True, config=SECTION)
class Config:
    """A whole run."""

    model: ModelConfig
    data: DataConfig
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    lora: LoraConfig | None = None  # null: all parameters are trained
    experts: ExpertsConfig = field(default_factory=ExpertsConfig)
    loss: LossConfig = field(default_factory=DpopConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    optimizer: OptimizerSection = field(default_factory=OptimizerConfig)
    train: TrainSection = field(default_factory=TrainConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    run: RunConfig = field(default_factory=RunConfig)
