"""The quickstart's last stage: a table on the terminal and `report.html`."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table as TerminalTable
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from megatron_dpop.report.page import write_report
from megatron_dpop.report.sections import Section, Table, TableRow

ROWS = {
    "accuracy": "validation/rewards/accuracies",
    "margin": "validation/rewards/margins",
    "chosen - reference (nats)": "validation/logps/chosen_minus_reference",
    "chosen log-probability (nats)": "validation/logps/chosen",
    "rejected log-probability (nats)": "validation/logps/rejected",
}


def summarise(run: Path, base: Path, sample: dict[str, str]) -> None:
    """Prints the validation before and after each loss, and writes the report, which has those numbers of its own."""
    disable_progress_bar()
    dpo, dpop = (_validations(run / name) for name in ("dpo", "dpop"))
    states = (dpop[0], dpo[-1], dpop[-1])
    rows = [TableRow(label, [f"{state[name]:.3f}" for state in states]) for label, name in ROWS.items()]
    folders = (base, run / "dpo" / "hf", run / "dpop" / "hf")
    of_sample = TableRow("a sample answer (nats)", [f"{answer_logp(folder, sample):.2f}" for folder in folders])
    columns = ("before", "after DPO", "after DPOP")
    table = TerminalTable("validation pairs", *columns)
    for row in (*rows, of_sample):
        table.add_row(row.label, *row.cells)
    Console().print(table)
    explanation = (
        "DPO raises the margin by lowering both answers, the chosen one too. DPOP's penalty does not let the "
        "chosen answer fall below its reference."
    )
    section = Section(
        title="One answer before, after DPO, after DPOP",
        paragraphs=(explanation, f"Prompt: {sample['prompt']}", f"Chosen answer: {sample['chosen']}"),
        tables=(Table(columns, (of_sample,), corner="by plain transformers"),),
    )
    write_report(
        [run / "dpo", run / "dpop"], run / "report.html", title="Quickstart: DPO and DPOP", extra_sections=(section,)
    )


def _validations(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "validation/loss" in line]


@torch.no_grad()
def answer_logp(folder: Path, pair: dict[str, str]) -> float:
    """Log-probability of the chosen answer after the chat prompt, by plain transformers in fp32."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    question = [{"role": "user", "content": pair["prompt"]}]
    answer = [{"role": "assistant", "content": pair["chosen"]}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template(question + answer, return_dict=False)
    logits = model(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1]
    targets = torch.tensor(whole[len(prompt) :])
    return float(F.log_softmax(logits, dim=-1).gather(1, targets[:, None]).sum())
