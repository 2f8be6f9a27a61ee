"""The page as text, and the command that writes it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dpop_base.errors import UserError
from megatron_dpop.commands.main import run as megatron_dpop
from megatron_dpop.report import Figure, Section, Table, TableRow, write_report
from tests.megatron_dpop.report.runs import metrics, write_run

HOSTILE = "</script><img src=x onerror=alert(1)>"


def _data(html: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def _pair(folder: Path) -> list[Path]:
    return [write_run(folder / "dpo", loss="dpo", end=-6.1), write_run(folder / "dpop", end=1.8)]


def test_page_is_self_contained_and_the_same_each_time(tmp_path: Path) -> None:
    runs = _pair(tmp_path)
    for name in ("a.html", "b.html"):
        write_report(runs, tmp_path / name)
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert html == (tmp_path / "b.html").read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)[^"']*""", html)
    assert not re.findall(r"@import|url\(", html)
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}  # a name, never fetched


def test_sample_answers_stand_beside_each_other(tmp_path: Path) -> None:
    runs = _pair(tmp_path)
    for run, last in zip(runs, ("rambling", HOSTILE), strict=True):
        lines = [{"step": step, "prompt": "two and two", "answer": text} for step, text in ((0, "four"), (16, last))]
        spoilt = ['{"step": 16, "prompt": "two', "[]", '{"step": "x", "prompt": "a", "answer": "b"}']
        (run / "samples.jsonl").write_text("\n".join([*map(json.dumps, lines), *spoilt]) + "\n")
    write_report(runs, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count(">two and two</th>") == 1
    assert html.count("<td>four (step 0)</td>") == 2
    assert "<td>rambling (step 16)</td>" in html
    assert HOSTILE not in html


def test_charts_come_in_order_with_every_point(tmp_path: Path) -> None:
    write_report(_pair(tmp_path), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    data = _data(html)
    first = data["charts"][0]
    assert first["title"] == "Chosen log-probability minus reference"
    assert [(s["run"], s["split"], len(s["points"])) for s in first["series"]] == [
        (0, "train", 20),
        (0, "validation", 2),
        (1, "train", 20),
        (1, "validation", 2),
    ]
    titles = ["Rejected reward", "Accuracy", "Margin", "Loss", "Gradient norm", "Throughput"]
    assert [chart["title"] for chart in data["charts"][1:7]] == titles
    for chart in data["charts"]:
        assert html.count(f'id="{chart["id"]}"') == 1


def test_long_run_is_thinned_and_smoothed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=5000, rows=metrics(5000, end=-4.0))
    write_report([run], tmp_path / "report.html")
    series = _data((tmp_path / "report.html").read_text(encoding="utf-8"))["charts"][0]["series"][0]
    assert series["window"] == 200
    assert len(series["points"]) <= 800
    assert len(series["smooth"]) <= 300
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


def test_text_from_runs_and_callers_is_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "<b>run", rows=[{"step": 0, "loss": 1.0, HOSTILE: 2.0, "bad": float("nan")}])
    with (run / "config.yaml").open("a", encoding="utf-8") as file:
        file.write(f"extra: {HOSTILE}\n")
    table = Table([HOSTILE], [TableRow(HOSTILE, [HOSTILE])], caption=HOSTILE)
    section = Section(HOSTILE, [HOSTILE], [table], [Figure(b"<svg/>", "image/svg+xml", HOSTILE, HOSTILE)])
    write_report([run], tmp_path / "report.html", title=HOSTILE, extra_sections=[section])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img src=x" not in html
    assert "<b>" not in html
    assert [chart["title"] for chart in _data(html)["charts"]] == ["Loss", HOSTILE, "bad"]


def test_health_findings_stand_in_the_runs_card_and_in_full(tmp_path: Path) -> None:
    write_report(_pair(tmp_path), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    dpo, dpop = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert re.search(r"Chosen answers fall below the reference <small>steps \d+ to 20</small>", dpo)
    assert "No health findings" in dpop
    (section,) = re.findall(r'<section class="card" id="health">.*?</section>', html, re.DOTALL)
    assert "On validation at step 20, the chosen answers are 6.1 nats less likely" in section
    assert "Nothing found in dpop." in section


def test_sound_runs_have_no_health_section(tmp_path: Path) -> None:
    write_report([write_run(tmp_path / "dpop", end=1.8)], tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No health findings" in html
    assert 'id="health"' not in html


def test_callers_sections_follow_the_results(tmp_path: Path) -> None:
    picture = tmp_path / "heat.svg"
    picture.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>', encoding="utf-8")
    table = Table(["sample answer, nats"], [TableRow("before", ["-81.4"]), TableRow("after DPO", ["-90.2"], run=0)])
    section = Section("Before and after", ["One answer."], [table], [Figure.read(picture, alt="A heat map")])
    write_report(_pair(tmp_path), tmp_path / "report.html", title="Quickstart", extra_sections=[section])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>Quickstart</title>" in html
    places = [
        html.index(text) for text in ("<h2>Results", "<h2>Before and after", "-90.2", "data:image/svg+xml", ">Curves<")
    ]
    assert places == sorted(places)


def test_picture_that_cannot_be_carried_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"give a \.png or \.svg file"):
        Figure.read(tmp_path / "a.gif", alt="")
    with pytest.raises(UserError, match="cannot be read"):
        Figure.read(tmp_path / "a.png", alt="")


def test_report_does_not_import_torch() -> None:
    code = (
        "import sys, megatron_dpop.report, megatron_dpop.commands.report;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'megatron', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_command_writes_into_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "dpop", steps=3)
    before = sorted(path.name for path in run.iterdir())
    assert megatron_dpop(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert sorted(path.name for path in run.iterdir()) == sorted([*before, "report.html"])


def test_command_compares_into_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert megatron_dpop(["report", *map(str, _pair(tmp_path)), "--title", "Two"]) == 0
    assert "<h1>Two</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("output", ["folder", "file/report.html"])
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    run = write_run(tmp_path / "run", steps=3)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert megatron_dpop(["report", str(run), "--output", str(tmp_path / output)]) == 2
    assert megatron_dpop(["report", str(run), str(tmp_path / "folder"), "--output", str(tmp_path / "x.html")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("megatron-dpop: error: ") for line in lines)
    assert sorted(tmp_path.rglob("*")) == before
