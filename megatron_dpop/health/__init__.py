"""Names what goes wrong in a run, in plain words, from its metrics alone: live and in reports. No torch."""

from megatron_dpop.health.monitor import Alert, Finding, Monitor

__all__ = ["Alert", "Finding", "Monitor"]
