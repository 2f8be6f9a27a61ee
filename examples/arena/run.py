"""Every pair loss on the same model, pairs, steps and learning rate; then docs/arena.md's table and figures.

    python examples/arena/run.py            # all of them; or --loss dpop, one after another
    python examples/arena/page.py           # writes the page's tables and figures from the results

A trial that is finished is passed over, so the command may be stopped and given again. The model is taught its task
first, where `python examples/paper/run.py accuracy` has not done so.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from examples.arena.contest import trials
from examples.arithmetic.bench import lay_out, run_trials
from examples.arithmetic.results import Results
from megatron_dpop.config.losses import PAIR_LOSSES

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", nargs="+", choices=list(PAIR_LOSSES), default=list(PAIR_LOSSES), metavar="NAME")
    parser.add_argument("--root", type=Path, default=Path("runs/arithmetic"), help="folder of everything that is made")
    parser.add_argument("--workers", type=int, default=2, help="trials at once, each on one core")
    given = parser.parse_args()
    results = Results(given.root / "results.jsonl")
    run_trials(trials(given.loss), lay_out(given.root), results, workers=given.workers)
