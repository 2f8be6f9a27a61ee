"""The gallery's page, figures and results agree; a run of it, made anew, shows what its page says."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

import tools.gallery as gallery
from megatron_dpop.config.load import config_from_dict
from megatron_dpop.config.schema import RuleName
from megatron_dpop.health.rules import RULES

PAGE = (gallery.OUTPUT.parents[1] / "gallery.md").read_text(encoding="utf-8")
RESULTS = json.loads((gallery.OUTPUT / "results.json").read_text(encoding="utf-8"))


def test_page_shows_every_run_and_names_every_rule() -> None:
    shown = re.findall(r"\]\(images/gallery/(\w+)\.svg\)", PAGE)
    assert shown == [run.name for run in gallery.RUNS] == list(RESULTS)
    assert {path.stem for path in gallery.OUTPUT.glob("*.svg")} == set(shown)
    assert set(re.findall(r"`(\w+)`", PAGE)) >= set(get_args(RuleName))


def test_page_quotes_what_the_rules_said() -> None:
    """Word for word, below each figure; a healthy run has nothing to quote."""
    words = " ".join(PAGE.replace("\n>", "\n").split())
    titles = {rule.name: rule.title for rule in RULES}
    assert RESULTS["healthy"] == []
    for name, found in RESULTS.items():
        if name != "healthy":
            assert found[0]["rule"] == name
        for one in found:
            assert one["title"] == titles[one["rule"]]
            assert one["what"] in words, f"{name}: {one['rule']}"


@pytest.mark.parametrize("run", gallery.RUNS, ids=lambda run: run.name)
def test_configs_are_good(run: gallery.GalleryRun, tmp_path: Path) -> None:
    config_from_dict(run.config(tmp_path), origin=run.name)


def test_pairs_are_of_their_kinds(tmp_path: Path) -> None:
    gallery.write_files(tmp_path)
    pairs, shuffled, few, held_out = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("pairs", "shuffled", "few", "held_out")
    )
    turned = [one["chosen"] == other["rejected"] for one, other in zip(pairs, shuffled, strict=True)]
    assert 0.4 < sum(turned) / len(turned) < 0.6
    assert few == pairs[: gallery.FEW]
    assert not {one["prompt"] for one in pairs} & {one["prompt"] for one in held_out}
