"""The five kinds of input: configs, files of pairs, Hugging Face folders, torch_dist folders, run folders."""

import csv
import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import yaml

from fuzzing import inputs, mutate
from fuzzing.kind import Kind

TRAINER, CONVERTER = "megatron-dpop", "checkpoint-convert"


class Configs(Kind):
    """A config file and words of the command line, through a dry run or a plan."""

    name = "config"

    def prepare(self) -> None:
        inputs.write_model(self.folder / "model")
        inputs.write_pairs(self.folder / "pairs.jsonl")

    def attempt(self, draw: Random, work: Path) -> tuple[str, list[str]]:
        tree, words = inputs.config(self.folder), []
        tree["run"]["dir"] = str(work / "run")
        way = draw.randrange(4)
        if way < 2:
            tree = mutate.tree(tree, draw)
        text = _yaml(tree)
        if way == 2:
            text = mutate.data(text, draw)
        if way == 3 or draw.random() < 0.2:
            key = draw.choice(
                ("data.train", "train.steps", "loss.beta", "lora", "logging.stop_on", "model.path", "a.b")
            )
            words = [
                f"--{key}",
                draw.choice((*mutate.WORDS, "5", "[1, {a: *b}]", "&a [*a]", "1:2:3")).replace("\0", "0"),
            ]
            if draw.random() < 0.3:
                words = ["=".join(words)]
        (work / "config.yaml").write_bytes(text)
        command = ["plan"] if draw.random() < 0.3 else ["train", "--dry-run"]
        return TRAINER, [*command, str(work / "config.yaml"), *words]


def _yaml(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError):
        return mutate.as_json(tree)


class PairFiles(Kind):
    """A data file of each type, through inspection or a dry run of training on it."""

    name = "pairs"

    def prepare(self) -> None:
        inputs.write_model(self.folder / "model")
        inputs.write_pairs(self.folder / "pairs.jsonl")
        (self.folder / "config.yaml").write_text(yaml.safe_dump(inputs.config(self.folder)))

    def attempt(self, draw: Random, work: Path) -> tuple[str, list[str]]:
        suffix = draw.choice(("jsonl", "jsonl", "json", "csv", "parquet", "arrow"))
        rows: Any = _rows(draw)
        if suffix != "jsonl" or draw.random() < 0.7:
            rows = mutate.tree(rows, draw)
        path = work / f"pairs.{suffix}"
        content = _encoded(rows, suffix)
        path.write_bytes(mutate.data(content, draw) if draw.random() < 0.4 else content)
        if draw.random() < 0.6:
            return TRAINER, ["data", "inspect", str(path)]
        return TRAINER, [
            "train", "--dry-run", str(self.folder / "config.yaml"),
            f"--data.train={path}", f"--run.dir={work / 'run'}", f"--loss.name={draw.choice(('dpop', 'dpo'))}",
        ]  # fmt: skip


def _rows(draw: Random) -> list[dict[str, Any]]:
    chat = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 w3"}]
    forms: list[list[dict[str, Any]]] = [
        inputs.PAIRS,
        [{"chosen": chat, "rejected": [chat[0], {"role": "assistant", "content": "w4"}]}],
        [{"prompt": "w1", "completion": "w2", "label": True}, {"prompt": "w1", "completion": "w3", "label": False}],
        [{"prompt": "w1", "responses": ["w2", "w3"], "scores": [1.0, 0.5]}],
        [{"messages": chat}],
    ]
    return draw.choice(forms)


def _encoded(rows: Any, suffix: str) -> bytes:
    import pyarrow
    import pyarrow.parquet

    if suffix == "json":
        return mutate.as_json(rows)
    listed = rows if isinstance(rows, list) else [rows]
    if suffix == "jsonl":
        return b"".join(mutate.as_json(row) + b"\n" for row in listed)
    tables = [row for row in listed if isinstance(row, dict)]
    if suffix == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(tables[0]) if tables else ["prompt"], extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(tables)
        return text.getvalue().encode("utf-8", "surrogatepass")
    try:
        table = pyarrow.Table.from_pylist(tables)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
        table = pyarrow.Table.from_pylist(inputs.PAIRS)
    sink = pyarrow.BufferOutputStream()
    try:
        if suffix == "parquet":
            pyarrow.parquet.write_table(table, sink)
        else:
            with pyarrow.ipc.new_file(sink, table.schema) as writer_:
                writer_.write_table(table)
    except pyarrow.ArrowException:
        return b"PAR1"
    return bytes(sink.getvalue())


class HuggingFaceFolders(Kind):
    """A model's folder: its config, its index, its weights of either format, its tokenizer."""

    name = "hf"

    def prepare(self) -> None:
        import torch
        from safetensors.torch import load_file, save_file

        inputs.write_model(self.folder / "model")
        inputs.write_pairs(self.folder / "pairs.jsonl")
        tensors = load_file(self.folder / "model" / "model.safetensors")
        names = sorted(tensors)
        for form in ("bin", "shards"):
            inputs.write_model(self.folder / form)
            (self.folder / form / "model.safetensors").unlink()
        torch.save(tensors, self.folder / "bin" / "pytorch_model.bin")
        weight_map: dict[str, str] = {}
        for part in range(2):
            file = f"model-0000{part + 1}-of-00002.safetensors"
            save_file({name: tensors[name] for name in names[part::2]}, self.folder / "shards" / file)
            weight_map |= dict.fromkeys(names[part::2], file)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (self.folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
        tree = inputs.config(self.folder)
        (self.folder / "config.yaml").write_text(yaml.safe_dump(tree))

    def attempt(self, draw: Random, work: Path) -> tuple[str, list[str]]:
        form = draw.choice(("model", "model", "bin", "shards"))
        folder = self.copied(form, work)
        path = draw.choice([folder / "config.json", *sorted(folder.iterdir())])
        content = path.read_bytes()
        if path.suffix == ".json" and draw.random() < 0.8:
            path.write_bytes(mutate.as_json(mutate.tree(json.loads(content), draw)))
        elif path.suffix == ".safetensors" and draw.random() < 0.5:
            length = int.from_bytes(content[:8], "little")
            header = mutate.as_json(mutate.tree(json.loads(content[8 : 8 + length]), draw))
            path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        else:
            path.write_bytes(mutate.data(content, draw))
        if "token" in path.name or "template" in path.name or draw.random() < 0.1:
            return TRAINER, [
                "train", "--dry-run", str(self.folder / "config.yaml"),
                f"--model.path={folder}", f"--run.dir={work / 'run'}",
            ]  # fmt: skip
        options = draw.choice(([], ["--dry-run"], ["--dtype", "bf16"]))
        return CONVERTER, ["hf-to-megatron", str(folder), str(work / "out"), "--quiet", *options]


class TorchDistFolders(Kind):
    """A Megatron checkpoint: its metadata, what lies beside tensors, its archives of tensors."""

    name = "torch_dist"

    def prepare(self) -> None:
        from checkpoint_convert.hf_to_megatron import hf_to_megatron
        from checkpoint_convert.manifest import MANIFEST

        inputs.write_model(self.folder / "model")
        hf_to_megatron(self.folder / "model", self.folder / "megatron", progress=False)
        (self.folder / "megatron" / MANIFEST).unlink()  # else nothing that is changed would be read any further

    def attempt(self, draw: Random, work: Path) -> tuple[str, list[str]]:
        folder = self.copied("megatron", work)
        release = folder / "release"
        metadata, way = release / ".metadata", draw.randrange(6)
        if way < 2:
            metadata.write_bytes(mutate.data(metadata.read_bytes(), draw))
        elif way == 2:
            metadata.write_bytes(_changed_metadata(metadata.read_bytes(), draw))
        elif way == 3:
            _change_archive(release / "__0_0.distcp", draw)
        else:
            path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
            if path.suffix == ".json" and draw.random() < 0.7:
                path.write_bytes(mutate.as_json(mutate.tree(json.loads(path.read_bytes()), draw)))
            else:
                path.write_bytes(mutate.data(path.read_bytes(), draw))
        return CONVERTER, ["megatron-to-hf", str(folder), str(work / "out"), "--quiet"]


def _changed_metadata(content: bytes, draw: Random) -> bytes:
    """A field of one of its objects replaced, or a small pickle that is slow or large to load in its place."""
    if draw.random() < 0.2:
        doubled = b")" + b"2\x86" * draw.choice((20, 60, 300))  # a tuple, twice in the next, twice in the next ...
        return b"\x80\x02" + draw.choice((doubled, b"}" + doubled + b"K\x01s", b"]" + doubled + b"a")) + b"."
    if draw.random() < 0.1:
        return b"\x80\x02]r" + draw.randbytes(4) + b"."
    metadata = pickle.loads(content)
    entries, places = metadata.state_dict_metadata, metadata.storage_data
    tensors = [entry for entry in entries.values() if hasattr(entry, "chunks")]
    entry, index = draw.choice(tensors), draw.choice(list(places))
    target, field = draw.choice(
        [(entry, "size"), (entry, "chunks"), (entry, "properties"), (entry.properties, "dtype"),
         (entry.chunks[0], "sizes"), (entry.chunks[0], "offsets"), (places[index], "relative_path"),
         (places[index], "offset"), (places[index], "length"), (places[index], "transform_descriptors"),
         (metadata, "storage_data"), (metadata, "state_dict_metadata"), (metadata, "planner_data")]
    )  # fmt: skip
    object.__setattr__(target, field, draw.choice((mutate.value(draw), [10**15, 16, 16], (2, 10**12), -1)))
    if draw.random() < 0.2:
        entries[draw.choice((*mutate.NUMBERS, None, (), "x")) if draw.random() < 0.3 else "x"] = entry
    try:
        return pickle.dumps(metadata)
    except (TypeError, AttributeError, RecursionError, ValueError):
        return content[: len(content) // 2]


def _change_archive(path: Path, draw: Random) -> None:
    """Bytes of the archives' own structure rather than of the elements."""
    content = bytearray(path.read_bytes())
    marks = [at for at in range(len(content) - 4) if content[at : at + 2] == b"PK"] or [0]
    for _ in range(draw.choice((1, 3))):
        at = draw.choice(marks) + draw.randrange(60)
        content[at : at + 1] = draw.randbytes(1)
    path.write_bytes(content)


class RunFolders(Kind):
    """A run's small files, through a report."""

    name = "runs"

    def prepare(self) -> None:
        run = self.folder / "run"
        run.mkdir()
        (run / "config.yaml").write_text(yaml.safe_dump(inputs.config(self.folder)))
        (run / "environment.json").write_text(json.dumps({"packages": {"torch": "2"}, "command": ["a", "b"], "n": 1}))
        (run / "heartbeat.json").write_text(json.dumps({"state": "training", "step": 3}))
        lines = [
            {
                "step": step, "loss": 1 / (step + 1), "rewards/accuracies": 0.5, "logps/chosen_minus_reference": -0.1,
                "rewards/margins": 0.1, "validation/loss": 0.5, "perf/step_seconds": 0.2, "grad_norm": 3.0,
                "logps/chosen": -9.0, "dpop/penalty": 0.1, "perf/peak_memory_bytes": 5e9, "learning_rate": 1e-4,
            }
            for step in range(5)
        ]  # fmt: skip
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def attempt(self, draw: Random, work: Path) -> tuple[str, list[str]]:
        run = self.copied("run", work)
        path = draw.choice([run / "metrics.jsonl", *sorted(run.iterdir())])
        content = path.read_bytes()
        if path.suffix == ".jsonl" and draw.random() < 0.7:
            lines = [json.loads(line) for line in content.splitlines()]
            changed = mutate.tree(lines, draw)
            content = b"".join(mutate.as_json(line) + b"\n" for line in changed) if isinstance(changed, list) else b"1"
        elif path.suffix == ".json" and draw.random() < 0.7:
            content = mutate.as_json(mutate.tree(json.loads(content), draw))
        elif path.suffix == ".yaml" and draw.random() < 0.7:
            content = _yaml(mutate.tree(yaml.safe_load(content), draw))
        else:
            content = mutate.data(content, draw)
        path.write_bytes(content)
        return TRAINER, ["report", str(run), "--output", str(work / "out.html")]


KINDS: dict[str, type[Kind]] = {
    kind.name: kind for kind in (Configs, PairFiles, HuggingFaceFolders, TorchDistFolders, RunFolders)
}
