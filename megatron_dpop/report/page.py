"""Turns run folders into one HTML page that needs nothing beside itself."""

from collections.abc import Sequence
from pathlib import Path

from megatron_dpop.pages import render_page, series_colours, write_page
from megatron_dpop.report.catalogue import Metric, arrange
from megatron_dpop.report.coincide import same_values
from megatron_dpop.report.curves import chart
from megatron_dpop.report.findings import finding
from megatron_dpop.report.run import ReportedRun, read_runs
from megatron_dpop.report.samples import sample_section
from megatron_dpop.report.sections import Section
from megatron_dpop.report.tables import differences, results, side_by_side, throughput

HERE = Path(__file__).parent


def write_report(
    runs: Sequence[Path], output: Path, *, title: str | None = None, extra_sections: Sequence[Section] = ()
) -> None:
    """Writes a page that compares the run folders, as they are now.

    Raises UserError where a folder is no run or has no metrics yet, or `output` cannot be written.
    """
    assert runs, "a report has at least one run"
    write_page(output, render(read_runs(runs), title=title, extra_sections=extra_sections))


def render(runs: Sequence[ReportedRun], *, title: str | None = None, extra_sections: Sequence[Section] = ()) -> str:
    main, others = arrange(name for run in runs for name in run.names)
    config = side_by_side(runs, lambda run: run.config)
    samples = sample_section(runs)
    colours = series_colours([run.loss for run in runs])
    return render_page(
        HERE,
        colours=colours,
        title=title or _title(runs),
        runs=[{"name": run.name, "colour": one} for run, one in zip(runs, colours, strict=True)],
        findings=[finding(run, same_as=one) for run, one in zip(runs, same_values(runs), strict=True)],
        main=_drawn(main, runs),
        others=_drawn(others, runs),
        extra_sections=[*extra_sections, *([samples] if samples else [])],
        results=results(runs),
        throughput=throughput(runs),
        config=config,
        config_differences=differences(config),
        environment=side_by_side(runs, lambda run: run.environment),
        scripts=[(HERE / name).read_text(encoding="utf-8") for name in ("scales.js", "charts.js", "page.js")],
    )


def _drawn(metrics: Sequence[Metric], runs: Sequence[ReportedRun]) -> list[dict[str, object]]:
    return [chart(metric, runs) for metric in metrics]


def _title(runs: Sequence[ReportedRun]) -> str:
    if len(runs) > 4:
        return f"{len(runs)} runs compared"
    return " vs ".join(run.name for run in runs)
