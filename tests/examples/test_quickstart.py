"""What the quickstart ends with works as printed, pasted into a shell."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_convert.commands import run as checkpoint_convert
from tests.megatron_dpop.report.runs import write_run
from tests.tiny import write_config, write_model, write_pairs

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


@pytest.mark.slow
def test_the_next_commands_work_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On what the quickstart leaves, in the small: a model, pairs, and the exports of two runs."""
    import yaml

    monkeypatch.syspath_prepend(str(QUICKSTART))
    spec = importlib.util.spec_from_file_location("quickstart_run", QUICKSTART / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run = tmp_path / "runs" / "a quickstart"
    model = write_model(run / "model", dtype="bfloat16", max_position_embeddings=1024)
    (run / "pairs").mkdir()
    for split, count in (("train", 24), ("validation", 8)):
        write_pairs(module.pairs_file(run, split), count, seed=count)
    for loss in module.LOSSES:
        assert checkpoint_convert(["hf-to-megatron", str(model), str(run / loss / "checkpoints"), "--quiet"]) == 0
        tree = write_config(tmp_path, model, run={"dir": str(run / loss)}, precision={"params": "bf16"})
        tree["data"]["train"] = str(module.pairs_file(run, "train"))
        (run / loss / "config.yaml").write_text(yaml.safe_dump(tree))
        (run / loss / "metrics.jsonl").write_text('{"step": 0, "loss": 0.69}\n')
    lines = module.next_steps(run, model)
    activate, *commands = [line for line in lines if line.startswith(("source ", "megatron-dpop "))]
    assert len(commands) == 3
    environment = {**os.environ, "MEGATRON_DPOP_DEVICE": "cpu", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    if not Path(sys.executable).with_name("activate").exists():  # an environment that is none of venv's
        activate = "true"
    script = "\n".join(["set -e", activate, *commands])
    done = subprocess.run(
        ["bash", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / "tokens.html").exists()
    assert (run / "ipo" / "hf" / "config.json").exists()
    assert (run / "three.html").exists()


def test_the_report_has_each_number_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured on the validation pairs stands under Results; the quickstart's own table has the rest."""
    monkeypatch.syspath_prepend(str(QUICKSTART))
    from summary import summarise  # type: ignore[import-not-found]

    model = write_model(tmp_path / "model")
    for loss, end in (("dpo", -6.1), ("dpop", 1.8)):
        write_run(tmp_path / loss, loss=loss, end=end)
        (tmp_path / loss / "hf").symlink_to(model)
    pair = json.loads(write_pairs(tmp_path / "pairs.jsonl", 2).read_text(encoding="utf-8").splitlines()[0])
    summarise(tmp_path, model, pair)
    tables = re.findall(r"<table.*?</table>", (tmp_path / "report.html").read_text(encoding="utf-8"), re.DOTALL)
    labels = [re.findall(r'<th scope="(?:row|col)">(?:<i[^>]*></i>)?([^<]+)', table) for table in tables]
    own = next(found for found in labels if "after DPOP" in found)
    assert own == ["by plain transformers", "before", "after DPO", "after DPOP", "a sample answer (nats)"]
    results = next(found for found in labels if "dpop, after 20 steps" in found)
    assert {"Accuracy", "Margin", "Rejected log-probability, nats"} <= set(results)


def test_uv_is_found_on_the_path_or_in_the_clone_and_else_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "clone" / "examples" / "quickstart" / "model.py"
    script.parent.mkdir(parents=True)
    script.write_text((QUICKSTART / "model.py").read_text(encoding="utf-8"), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("a_clones_model", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SystemExit, match="run `make"):
        module.find_uv()
    for folder in (tmp_path / "clone" / ".uv" / "bin", tmp_path / "bin"):
        folder.mkdir(parents=True)
        (folder / "uv").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        (folder / "uv").chmod(0o755)
        assert module.find_uv() == str(folder / "uv")
    with pytest.raises(SystemExit, match="could not be downloaded"):
        module.fetch_smollm2(tmp_path / "model")
    assert not (tmp_path / "model").exists()
