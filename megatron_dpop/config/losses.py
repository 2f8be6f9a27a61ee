"""The section `loss`: which loss, and the keys that it has. What each computes is in `megatron_dpop.losses`."""

from dataclasses import field
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_serializer
from pydantic.dataclasses import dataclass

from megatron_dpop.config.numbers import NonNegativeReal, PositiveReal, PositiveShare, Real, Share

SECTION = ConfigDict(extra="forbid")


Smoothing = Annotated[Real, Field(ge=0, lt=0.5)]


@dataclass(frozen=True, config=SECTION)
class PairLossConfig:
    """What every pair loss takes besides its own keys."""

    name: str = ""
    nll_weight: NonNegativeReal = 0.0  # of the chosen answer's negative log-likelihood; Llama 3's DPO uses 0.2


@dataclass(frozen=True, config=SECTION)
class DpoConfig(PairLossConfig):
    name: Literal["dpo"] = "dpo"
    beta: PositiveReal = 0.1  # strength of the tie to the reference
    label_smoothing: Smoothing = 0.0  # assumed share of swapped labels
    average: Literal["none", "tokens"] = "none"  # tokens: each log-ratio is divided by the completion's tokens
    ld_alpha: Share = 1.0  # what tokens beyond the shorter answer's length count (LD-DPO)


@dataclass(frozen=True, config=SECTION)
class DpopConfig(PairLossConfig):
    name: Literal["dpop"] = "dpop"
    beta: PositiveReal = 0.3  # as in DPO; the paper's
    lambda_: NonNegativeReal = Field(default=50.0, alias="lambda")  # weight of the penalty; the paper's
    average: Literal["none", "tokens"] = "none"  # tokens: each log-ratio, the penalty's too, is divided by the tokens


@dataclass(frozen=True, config=SECTION)
class IpoConfig(PairLossConfig):
    name: Literal["ipo"] = "ipo"
    beta: PositiveReal = 0.1  # the paper's tau
    reduction: Literal["sum", "mean"] = "sum"  # of a completion's token log-probabilities


@dataclass(frozen=True, config=SECTION)
class HingeConfig(PairLossConfig):
    name: Literal["hinge"] = "hinge"
    beta: PositiveReal = 0.1  # the reciprocal of the margin in nats


@dataclass(frozen=True, config=SECTION)
class RobustConfig(PairLossConfig):
    name: Literal["robust"] = "robust"
    beta: PositiveReal = 0.1
    label_smoothing: Smoothing = 0.1  # assumed share of swapped labels


@dataclass(frozen=True, config=SECTION)
class ExoConfig(PairLossConfig):
    name: Literal["exo"] = "exo"
    beta: PositiveReal = 0.1
    label_smoothing: Annotated[Real, Field(gt=0, lt=0.5)] = 1e-3  # what the target leaves to the rejected answer


@dataclass(frozen=True, config=SECTION)
class DiscoPopConfig(PairLossConfig):
    name: Literal["discopop"] = "discopop"
    beta: PositiveReal = 0.05
    tau: Annotated[Real, Field(gt=0, lt=1)] = 0.05  # temperature of the blend; at 1 finite margins have no bound


@dataclass(frozen=True, config=SECTION)
class AnchoredConfig(PairLossConfig):
    """What `apo_zero`, `apo_down`, `nca` and `bco` take."""

    beta: PositiveReal = 0.1  # strength of the tie to the reference


@dataclass(frozen=True, config=SECTION)
class ApoZeroConfig(AnchoredConfig):
    name: Literal["apo_zero"] = "apo_zero"


@dataclass(frozen=True, config=SECTION)
class ApoDownConfig(AnchoredConfig):
    name: Literal["apo_down"] = "apo_down"


@dataclass(frozen=True, config=SECTION)
class NcaConfig(AnchoredConfig):
    name: Literal["nca"] = "nca"


@dataclass(frozen=True, config=SECTION)
class BcoConfig(AnchoredConfig):
    name: Literal["bco"] = "bco"


@dataclass(frozen=True, config=SECTION)
class SppoHardConfig(PairLossConfig):
    name: Literal["sppo_hard"] = "sppo_hard"
    beta: PositiveReal = 0.001  # reciprocal of the paper's eta; the targets lie 1 / (2 beta) nats from the reference


@dataclass(frozen=True, config=SECTION)
class CalDpoConfig(PairLossConfig):
    name: Literal["cal_dpo"] = "cal_dpo"
    beta: PositiveReal = 0.1  # the two log-ratios' targets lie 1 / (2 beta) nats above and below the reference


@dataclass(frozen=True, config=SECTION)
class DpoShiftConfig(PairLossConfig):
    name: Literal["dpo_shift"] = "dpo_shift"
    beta: PositiveReal = 0.1
    lambda_: PositiveShare = Field(default=0.75, alias="lambda")  # factor of the rejected reward; 1 is DPO
    lambda_end: PositiveShare | None = None  # its value after the last step, linear in between; null: it stays


@dataclass(frozen=True, config=SECTION)
class BpoConfig(PairLossConfig):
    name: Literal["bpo"] = "bpo"
    beta: PositiveReal = 0.1
    alpha: PositiveShare = 1.0  # factor of the rejected reward, the paper's gap adaptor


@dataclass(frozen=True, config=SECTION)
class CpoConfig:
    name: Literal["cpo"] = "cpo"
    beta: PositiveReal = 0.1
    label_smoothing: Smoothing = 0.0
    nll_weight: NonNegativeReal = 1.0  # of the likelihood term; the paper's
    nll_reduction: Literal["sum", "mean"] = "sum"  # over the chosen answer's tokens


@dataclass(frozen=True, config=SECTION)
class SimpoConfig(PairLossConfig):
    name: Literal["simpo"] = "simpo"
    beta: PositiveReal = 2.0
    gamma: NonNegativeReal = 1.0  # the margin of rewards that is aimed at
    label_smoothing: Smoothing = 0.0


@dataclass(frozen=True, config=SECTION)
class OrpoConfig:
    name: Literal["orpo"] = "orpo"
    beta: PositiveReal = 0.1  # weight of the odds ratio, the paper's lambda


@dataclass(frozen=True, config=SECTION)
class KtoConfig:
    name: Literal["kto"] = "kto"
    beta: PositiveReal = 0.1
    desirable_weight: PositiveReal = 1.0  # the paper's lambda_D; balance the two against the shares of the labels
    undesirable_weight: PositiveReal = 1.0  # the paper's lambda_U


@dataclass(frozen=True, config=SECTION)
class AftConfig:
    name: Literal["aft"] = "aft"
    reduction: Literal["sum", "mean"] = "sum"  # how a completion's token log-probabilities become its score
    constraint: Literal["none", "detached"] = "none"  # on how far rejected completions are pushed down


@dataclass(frozen=True, config=SECTION)
class SftConfig:
    name: Literal["sft"] = "sft"
    reduction: Literal["mean", "sum"] = "mean"  # an example's loss over its tokens


PairLoss = Annotated[
    DpoConfig
    | DpopConfig
    | IpoConfig
    | HingeConfig
    | RobustConfig
    | ExoConfig
    | DiscoPopConfig
    | ApoZeroConfig
    | ApoDownConfig
    | NcaConfig
    | BcoConfig
    | SppoHardConfig
    | CalDpoConfig
    | DpoShiftConfig
    | BpoConfig
    | CpoConfig
    | SimpoConfig
    | OrpoConfig,
    Field(discriminator="name"),
]


def _as_term(value: Any) -> Any:
    """An entry of `terms` holds its weight beside the loss's own keys."""
    if not isinstance(value, dict):
        return value
    keys = {key: entry for key, entry in value.items() if key != "weight"}
    return {"loss": keys} | ({"weight": value["weight"]} if "weight" in value else {})


@dataclass(frozen=True, config=SECTION)
class SumTerm:
    """A loss and what it is multiplied by."""

    loss: PairLoss
    weight: PositiveReal = 1.0

    @model_serializer(mode="wrap")
    def _flat(self, serialize: Any) -> dict[str, Any]:
        values = serialize(self)
        return {"weight": values["weight"], **values["loss"]}


def _each_once(terms: tuple[SumTerm, ...]) -> tuple[SumTerm, ...]:
    names = [term.loss.name for term in terms]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{twice} is named {names.count(twice)} times; give each loss once")
    return terms


def _all_alike(terms: tuple[SumTerm, ...]) -> tuple[SumTerm, ...]:
    """All terms see the same log-probabilities."""
    if any(isinstance(term.loss, DpoConfig) and term.loss.ld_alpha != 1 for term in terms):
        raise ValueError("all terms see the same log-probabilities, so that none takes ld_alpha; leave it out")
    return terms


Terms = tuple[Annotated[SumTerm, BeforeValidator(_as_term)], ...]


@dataclass(frozen=True, config=SECTION)
class SumConfig:
    name: Literal["sum"] = "sum"
    terms: Annotated[Terms, Field(min_length=2), AfterValidator(_each_once), AfterValidator(_all_alike)] = field(
        kw_only=True
    )


def _as_loss(value: Any) -> Any:
    """A loss without a name is DPOP, so that `--loss.lambda 5` alone is enough."""
    given = {} if value is None else value
    return {"name": "dpop", **given} if isinstance(given, dict) else given


NamedLossConfig = PairLoss | KtoConfig | AftConfig | SftConfig
LossConfig = Annotated[
    Annotated[PairLoss | KtoConfig | AftConfig | SftConfig | SumConfig, Field(discriminator="name")],
    BeforeValidator(_as_loss),
]
PAIR_LOSSES: dict[str, type] = {kind.name: kind for kind in get_args(get_args(PairLoss)[0])}
LOSSES: dict[str, type] = {**PAIR_LOSSES, **{kind.name: kind for kind in (KtoConfig, AftConfig, SftConfig, SumConfig)}}
