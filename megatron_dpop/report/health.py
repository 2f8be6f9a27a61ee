"""What the health monitor's rules say of a run's metrics, for the page: the same rules that watch it live."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_dpop.health.monitor import findings
from megatron_dpop.report.run import ReportedRun


@dataclass(frozen=True)
class HealthNote:
    title: str
    when: str  # "step 0", "steps 6 to 16"
    what: str


def health_notes(run: ReportedRun) -> Sequence[HealthNote]:
    """Returns notes in the order in which the rules first held."""
    return [
        HealthNote(found.title, _when(found.first_step, found.last_step), found.what[0].upper() + found.what[1:])
        for found in findings(run.config, run.metrics.items())
    ]


def _when(first: int, last: int) -> str:
    return f"step {first}" if first == last else f"steps {first} to {last}"
