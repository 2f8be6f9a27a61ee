"""The check of a machine, on this one: a CPU has everything but the rates to expect."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_cpu_passes_what_it_can_check(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "tools" / "gpu_check.py", "--json", tmp_path / "found.json"],
        cwd=tmp_path,
        env={**os.environ, "MEGATRON_DPOP_DEVICE": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    verdicts = {(finding["part"], finding["what"]): finding["verdict"] for finding in found}
    assert "MISS" not in verdicts.values()
    assert {part for part, _ in verdicts} == {"versions", "exact", "rates", "step"}
    compared = [what for (part, what), verdict in verdicts.items() if part == "exact" and verdict == "ok"]
    for kernel in ("attention", "gate", "log-probabilities", "segment sums"):
        assert any(kernel in what for what in compared), kernel


def test_what_misses_is_said_and_fails(monkeypatch, capsys) -> None:
    import gpu_check
    from gpu_checks.finding import CheckResult, within

    missing = within("rates", "a product", 300.0, 475.0, None, unit="TFLOP/s", means="the clock is low")
    monkeypatch.setattr(
        gpu_check, "findings", lambda _: iter([missing, CheckResult("versions", "torch", "2.13", "", "ok")])
    )
    assert gpu_check.main([]) == 1
    out = capsys.readouterr().out
    assert "| rates | a product | 300 TFLOP/s | at least 475 | MISS | the clock is low |" in out
    assert "2 findings, 1 missed" in out
