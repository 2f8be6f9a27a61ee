"""The `checkpoint-convert` command."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dpop_base.errors import UserError, escape_what_output_lacks
from dpop_base.os_errors import explain_os_error
from dpop_base.version import project_version

_EXAMPLES = """examples:
  checkpoint-convert hf-to-megatron models/Qwen2.5-7B checkpoints/Qwen2.5-7B
  checkpoint-convert hf-to-megatron adapters/sft checkpoints/sft --base models/Qwen2.5-7B
  checkpoint-convert megatron-to-hf runs/dpop/checkpoints exported --dtype bf16
  checkpoint-convert megatron-to-hf runs/lora/checkpoints merged
  checkpoint-convert megatron-to-hf runs/lora/checkpoints adapter --adapter
  checkpoint-convert megatron-to-hf megatron-lm/checkpoints from-megatron-lm --from-args llama
  checkpoint-convert verify models/Qwen2.5-7B checkpoints/Qwen2.5-7B
"""


def run(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one line on standard error for bad input."""
    escape_what_output_lacks()
    options = build_parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except UserError as error:
        print(f"checkpoint-convert: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        line = explain_os_error(error)
        if line is None:
            raise
        print(f"checkpoint-convert: error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("checkpoint-convert: interrupted; run the same command again to continue", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="checkpoint-convert",
        description="Converts between Hugging Face folders and Megatron torch_dist checkpoints, without a GPU and "
        "without building the model. An interrupted conversion is continued by the same command.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {project_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    to_megatron = commands.add_parser(
        "hf-to-megatron",
        help="Hugging Face folder, or PEFT folder with its base, to torch_dist",
        epilog="example:\n  checkpoint-convert hf-to-megatron models/SmolLM2-135M checkpoints/SmolLM2-135M",
        formatter_class=raw,
    )
    to_megatron.set_defaults(command=_hf_to_megatron)
    to_hf = commands.add_parser(
        "megatron-to-hf",
        help="torch_dist to a Hugging Face folder",
        epilog="example:\n  checkpoint-convert megatron-to-hf runs/dpop/checkpoints exported --dtype bf16",
        formatter_class=raw,
    )
    to_hf.set_defaults(command=_megatron_to_hf)
    for command in (to_megatron, to_hf):
        command.add_argument("source", metavar="SRC", type=Path)
        command.add_argument("target", metavar="DST", type=Path, help="a new folder, or one to continue in")
        command.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: as the source stores it")
        command.add_argument("--workers", type=_positive, help="files written at once (default: 2 to 4, by cores)")
        command.add_argument("--dry-run", action="store_true", help="print the plan; SRC may be a config.json alone")
        command.add_argument("--quiet", action="store_true", help="no progress")
    to_megatron.add_argument(
        "--base", type=Path, help="base model of a PEFT folder's LoRA adapter (default: what the adapter names)"
    )
    to_hf.add_argument("--base", type=Path, help="base model of LoRA adapters (default: what they were trained from)")
    to_hf.add_argument(
        "--config",
        type=Path,
        metavar="FOLDER",
        help="config.json and tokenizer (default: the checkpoint's huggingface/)",
    )
    to_hf.add_argument(
        "--from-args",
        metavar="FAMILY",
        help="make config.json of the checkpoint's own arguments, for this family (llama)",
    )
    to_hf.add_argument("--adapter", action="store_true", help="LoRA adapters alone, as a PEFT folder, not merged")
    verify = commands.add_parser(
        "verify",
        help="compare two checkpoints of any kind",
        epilog="example:\n  checkpoint-convert verify models/SmolLM2-135M checkpoints/SmolLM2-135M",
        formatter_class=raw,
    )
    verify.set_defaults(command=_verify)
    verify.add_argument("first", metavar="A", type=Path)
    verify.add_argument("second", metavar="B", type=Path)
    verify.add_argument("--logits", action="store_true", help="also run a prompt through both, and transformers")
    verify.add_argument(
        "--tokens", type=_positive, help="of that prompt (default: beyond the model's window and rope scaling)"
    )
    verify.add_argument("--quiet", action="store_true", help="no progress")
    return parser


# The commands import what they need when they run: `--help` answers at once, without importing torch.


def _hf_to_megatron(options: argparse.Namespace) -> int:
    from checkpoint_convert.peft_folder import base_of, is_peft_folder

    adapter = is_peft_folder(options.source)
    if options.base is not None and not adapter:
        raise UserError(f"{options.source}: is no PEFT folder with a LoRA adapter; leave --base out")
    if options.dry_run:
        from checkpoint_convert.conversion.describe import describe

        model = base_of(options.source, options.base) if adapter else options.source
        print(describe(model, "megatron", options.dtype))
        return 0
    if adapter:
        from checkpoint_convert.peft_to_megatron import peft_to_megatron

        peft_to_megatron(
            options.source,
            options.target,
            base=options.base,
            dtype=options.dtype,
            workers=options.workers,
            progress=not options.quiet,
        )
        return 0
    from checkpoint_convert.hf_to_megatron import hf_to_megatron

    hf_to_megatron(
        options.source,
        options.target,
        dtype=options.dtype,
        workers=options.workers,
        progress=not options.quiet,
    )
    return 0


def _megatron_to_hf(options: argparse.Namespace) -> int:
    if options.dry_run:
        from checkpoint_convert.conversion.describe import describe

        if options.from_args:
            raise UserError("--dry-run: needs a config.json; name one with --config instead of --from-args")
        print(describe(options.config or options.source, "huggingface", options.dtype))
        return 0
    if options.adapter:
        if options.config or options.from_args:
            raise UserError("--adapter: an adapter has no config.json of its own; leave --config and --from-args out")
        from checkpoint_convert.megatron_to_peft import megatron_to_peft

        megatron_to_peft(
            options.source,
            options.target,
            base=str(options.base) if options.base else None,
            dtype=options.dtype,
            workers=options.workers,
            progress=not options.quiet,
        )
        return 0
    from checkpoint_convert.megatron_to_hf import megatron_to_hf

    megatron_to_hf(
        options.source,
        options.target,
        base=options.base,
        config=options.config,
        from_args=options.from_args,
        dtype=options.dtype,
        workers=options.workers,
        progress=not options.quiet,
    )
    return 0


def _verify(options: argparse.Namespace) -> int:
    from checkpoint_convert.verify import verify

    report = verify(
        options.first,
        options.second,
        logits=options.logits,
        num_tokens=options.tokens,
        progress=not options.quiet,
    )
    print(report.text())
    return 0 if report.good else 1


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(run())
