"""lora merge, resize, extract, convert: parse words, check headers, start the tool in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from launcher.commands import SETTINGS, command

DTYPES = click.Choice(["float", "fp16", "bf16"])
output_option = click.option(
    "-o", "--output", required=True, metavar="OUT", type=click.Path(path_type=Path), help="The file to write."
)
dtype_option = click.option("--dtype", type=DTYPES, help="Number format of OUT; that of the input if not given.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
lora_argument = click.argument("lora_file", metavar="LORA", type=click.Path(path_type=Path))


@click.group("lora", context_settings=SETTINGS)
def lora() -> None:
    """Merge, resize, extract and convert LoRA files."""


def start(do: str, files: list[Path], output: Path, as_json: bool, **more: Any) -> int:
    """Checks the headers, then does it in a child process, which alone loads torch."""
    from launcher.about.lora_checks import check

    wish = {"do": do, "files": [str(file) for file in files], "output": str(output), "json": as_json, **more}
    check(wish)
    from launcher.commands.demo import run_module

    return run_module("trainer.output.lora_work", json.dumps(wish))


@command("merge", group="lora")
@click.argument("loras", metavar="LORA...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--weights", metavar="A,B", help="How strongly each counts; 1 for all if not given.")
@click.option("--rank", type=click.IntRange(1, 4096), help="Bring the sum to this rank; without it the sum is exact.")
@click.option("--into", metavar="MODEL", type=click.Path(path_type=Path), help="A checkpoint to merge them into.")
@output_option
@dtype_option
@overwrite_option
def merge(
    loras: tuple[Path, ...], weights: str | None, rank: int | None, into: Path | None, output: Path,
    dtype: str | None, overwrite: bool, as_json: bool,
) -> int:  # fmt: skip
    """One LoRA that does what several do together, or with --into a checkpoint that does without them."""
    from launcher.check.resolve import UsageError

    if into is not None and (rank is not None or dtype is not None):
        raise UsageError(f"--{'rank' if rank else 'dtype'} has no meaning with --into: MODEL keeps its own formats")
    return start("merge", list(loras), output, as_json, weights=read_weights(weights, len(loras)), rank=rank,
                 into=str(into) if into else None, dtype=dtype, overwrite=overwrite)  # fmt: skip


def read_weights(text: str | None, count: int) -> list[float]:
    """The numbers of --weights, one a file; UsageError for anything else."""
    import math

    from launcher.check.resolve import UsageError

    if text is None:
        return [1.0] * count
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        raise UsageError(f"--weights must be numbers with commas between, such as 0.7,0.5 (got {text!r})") from None
    if len(found) != count:
        raise UsageError(f"--weights has {len(found)} numbers for {count} files (got {text!r})")
    if not all(math.isfinite(weight) for weight in found):
        raise UsageError(f"--weights must be finite numbers (got {text!r})")
    return found


@command("resize", group="lora")
@lora_argument
@click.option("--rank", type=click.IntRange(1, 4096), help="The new rank; with --keep the highest allowed.")
@click.option("--keep", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
              help="Keep this share of each module's Frobenius norm, such as 0.95.")  # fmt: skip
@output_option
@dtype_option
@overwrite_option
def resize(
    lora_file: Path, rank: int | None, keep: float | None, output: Path, dtype: str | None, overwrite: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """The nearest LoRA of a lower rank."""
    from launcher.check.resolve import UsageError

    if rank is None and keep is None:
        raise UsageError("say --rank 16 or --keep 0.95")
    return start("resize", [lora_file], output, as_json, rank=rank, keep=keep, dtype=dtype, overwrite=overwrite)


@command("extract", group="lora")
@click.argument("tuned", type=click.Path(path_type=Path))
@click.argument("base", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(1, 4096), required=True, help="Rank of the LoRA.")
@click.option("--conv-rank", type=click.IntRange(0, 4096), help="Of 3x3 convolutions; 0 leaves them out.")
@output_option
@dtype_option
@overwrite_option
def extract(
    tuned: Path, base: Path, rank: int, conv_rank: int | None, output: Path, dtype: str | None, overwrite: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """The LoRA that is nearest to what the checkpoint TUNED has learnt beyond BASE."""
    return start("extract", [tuned, base], output, as_json, rank=rank, conv_rank=conv_rank, dtype=dtype,
                 overwrite=overwrite)  # fmt: skip


@command("convert", group="lora")
@lora_argument
@click.option("--to", "form", type=click.Choice(["kohya", "peft", "diffusers"]), required=True, help="Names to use.")
@output_option
@dtype_option
@overwrite_option
def convert(lora_file: Path, form: str, output: Path, dtype: str | None, overwrite: bool, as_json: bool) -> int:
    """The same LoRA under the names of another program; peft's form is a folder."""
    return start("convert", [lora_file], output, as_json, to=form, dtype=dtype, overwrite=overwrite)


for one in (merge, resize, extract, convert):
    lora.add_command(one)
