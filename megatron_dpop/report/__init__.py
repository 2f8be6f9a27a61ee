"""One self-contained HTML page that compares runs. Imports no PyTorch: it opens where nothing was ever trained."""

from megatron_dpop.report.page import write_report
from megatron_dpop.report.sections import Figure, Section, Table, TableRow

__all__ = ["Figure", "Section", "Table", "TableRow", "write_report"]
