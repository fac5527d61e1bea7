"""`python -m benchmarks.same record|check DIR [--files FOLDER] [--only NAME]`: what a rebuild must not change.

`record` trains about thirty small runs and keeps the loss of every step and a hash of every LoRA file's tensors; of
each config file in FOLDER it keeps the documents of `validate --json` and `plan --json` and every conversion. `check`
does the same again and says what is different; exit code 1 where a loss or a tensor is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

Options = Mapping[str, Any]
LYCORIS = {"network_module": "lycoris.kohya"}
RUNS: dict[str, tuple[str, Options]] = {
    "lora": ("sd15", {}),
    "lora-unet-only": ("sd15", {"network_train_unet_only": True}),
    "locon": ("sd15", {"network_args": ["conv_dim=2", "conv_alpha=1"]}),
    "lora-dropouts": ("sd15", {"network_dropout": 0.2, "network_args": ["rank_dropout=0.1", "module_dropout=0.1"]}),
    "lora-plus": ("sd15", {"network_args": ["loraplus_lr_ratio=4"]}),
    "block-dims": ("sd15", {"network_args": ["block_dims=" + ",".join(["2"] * 25)]}),
    "dylora": ("sd15", {"network_module": "networks.dylora", "network_args": ["unit=2"]}),
    "lora-fa": ("sd15", {"network_module": "networks.lora_fa"}),
    "oft": ("sd15", {"network_module": "networks.oft", "network_alpha": 1e-3}),
    "loha": ("sd15", {"network_module": "networks.loha"}),
    "lokr": ("sd15", {"network_module": "networks.lokr", "network_args": ["factor=4"]}),
    "dora": ("sd15", {**LYCORIS, "network_args": ["algo=locon", "dora_wd=True", "conv_dim=2"]}),
    "dora-input": ("sd15", {**LYCORIS, "network_args": ["algo=lora", "dora_wd=True", "wd_on_output=False"]}),
    "adamw8bit": ("sd15", {"optimizer_type": "AdamW8bit"}),
    "prodigy": ("sd15", {"optimizer_type": "Prodigy", "learning_rate": 1.0, "unet_lr": 1.0, "text_encoder_lr": [1.0]}),
    "adafactor": ("sd15", {"optimizer_type": "AdaFactor", "optimizer_args": ["relative_step=False"]}),
    "schedule-free": ("sd15", {"optimizer_type": "AdamWScheduleFree"}),
    "lion-cosine": ("sd15", {"optimizer_type": "Lion", "lr_scheduler": "cosine", "lr_warmup_steps": 2}),
    "uncached": ("sd15", {"cache_latents": False, "random_crop": True, "color_aug": True, "flip_aug": True}),
    "cached-to-disk": ("sd15", {"cache_latents_to_disk": True}),
    "accumulation": ("sd15", {"gradient_accumulation_steps": 3, "train_batch_size": 2, "max_train_epochs": 3}),
    "checkpointing": ("sd15", {"gradient_checkpointing": True}),
    "noise": ("sd15", {"noise_offset": 0.05, "multires_noise_iterations": 4, "ip_noise_gamma": 0.1}),
    "weights-of-loss": ("sd15", {"min_snr_gamma": 5, "loss_type": "huber", "scale_weight_norms": 1.0}),
    "zero-terminal-snr": ("sd15", {"zero_terminal_snr": True, "v_parameterization": True}),
    "captions": ("sd15", {"shuffle_caption": True, "keep_tokens": 1, "caption_dropout_rate": 0.2}),
    "validation": ("sd15", {"validation_split": 0.4, "validate_every_n_steps": 2}),
    "bf16": ("sd15", {"mixed_precision": "bf16", "save_precision": "bf16"}),
    "resumed": ("sd15", {"save_state": True, "save_every_n_steps": 2}),
    "sdxl": ("sdxl", {}),
    "sdxl-locon": ("sdxl", {"network_args": ["conv_dim=2"]}),
    "sdxl-text-cached": ("sdxl", {"cache_text_encoder_outputs": True, "network_train_unet_only": True}),
    "sdxl-two-rates": ("sdxl", {"text_encoder_lr": [1e-4, 2e-4], "max_token_length": 150}),
}
TARGETS = ("kohya-gui", "sd-scripts", "civitai", "args", "snapshot")
# Of this machine or this moment: no part of what a document says.
PASSING = re.compile(
    r"\d[\d,.]*\s?(?:GB|GiB|MB|MiB)|/[^\s\"']*(?:python|accelerate\.json|presets)[^\s\"']*|\d{8}-\d{6}"
)


def images(folder: Path) -> Path:
    """Six captioned images in two shapes."""
    place = folder / "2_n0m3"
    place.mkdir(parents=True)
    for number in range(6):
        image = Image.new("RGB", (64, 64) if number % 2 else (96, 64), (40 * number, 90, 200 - 40 * number))
        ImageDraw.Draw(image).ellipse((8, 8, 40, 50), fill=(250, 30 * number, 0))
        image.save(place / f"{number}.png")
        (place / f"{number}.txt").write_text(f"n0m3, an ellipse, number {number}", encoding="utf-8")
    return folder


def argv(options: Options) -> Iterator[str]:
    """The trainer's arguments."""
    for name, value in options.items():
        if value is False or value is None:
            continue
        yield f"--{name}"
        if value is not True:
            yield from (map(str, value) if isinstance(value, list) else [str(value)])


def trained(name: str, models: Mapping[str, Path], work: Path) -> dict[str, Any]:
    """Losses and hashes of one run; of `resumed` those after going back to its second step."""
    family, options = RUNS[name]
    out = work / name
    every: dict[str, Any] = {
        "pretrained_model_name_or_path": models[family], "train_data_dir": images(work / f"{name}-data"),
        "output_dir": out, "output_name": "n0m3", "resolution": "64,64", "enable_bucket": True, "min_bucket_reso": 64,
        "max_bucket_reso": 128, "caption_extension": ".txt", "network_module": "networks.lora", "network_dim": 4,
        "learning_rate": 1e-3, "max_train_steps": 4, "cache_latents": True, "seed": 7,
        "max_data_loader_n_workers": 0, "save_every_n_steps": 2, **options,
    }  # fmt: skip
    _train(every)
    if name == "resumed":
        _train({**every, "resume": out / "n0m3.run" / "state-00000002"})
    log = (out / "n0m3.run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "losses": [json.loads(line)["loss"] for line in log],
        "files": {path.name: tensors(path) for path in sorted(out.glob("*.safetensors"))},
    }


def _train(options: Options) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from trainer.__main__ import main

    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    code = main(list(argv(options)))
    if code:
        raise SystemExit(f"a run ended with exit code {code}: {' '.join(argv(options))}")


def tensors(path: Path) -> str:
    """SHA-256 of the names, forms and bytes of a file's tensors; headers hold dates."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + data[8 + length :]).hexdigest()


def documents(file: Path) -> dict[str, Any]:
    """What the commands say of one config file, exit codes included."""
    from click.testing import CliRunner

    from launcher.cli import cli

    found: dict[str, Any] = {}
    for command in ("validate", "plan"):
        found[command] = _said(CliRunner().invoke(cli, [command, str(file), "--json"]))
    for target in TARGETS:
        found[target] = _said(CliRunner().invoke(cli, ["convert", str(file), "--to", target, "--json"]))
    return found


def _said(result: Any) -> dict[str, Any]:
    crash = repr(result.exception) if result.exception and not isinstance(result.exception, SystemExit) else None
    try:
        document = json.loads(PASSING.sub("?", result.stdout))
    except ValueError:
        document = result.stdout
    return {"exit": result.exit_code, "crash": crash, "document": document}


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Where two documents differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}, key=str):
            yield from differences(before.get(key), after.get(key), f"{place}/{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{place}/{number}")
    elif before != after:
        yield f"{place}: {str(before)[:160]} -> {str(after)[:160]}"


def measured(names: list[str], folder: Path | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the record, record) of every run and every file."""
    if names:
        from trainer.families import random_checkpoint

        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            models = {family: work / f"{family}.safetensors" for family in ("sd15", "sdxl")}
            for family, path in models.items():
                random_checkpoint.write(path, family, tiny=True, dtype="fp32", seed=0)
            for name in names:
                yield f"run-{name}", trained(name, models, work)
    for file in sorted(folder.rglob("*")) if folder else ():
        if file.is_file():
            yield f"file-{file.parent.name}-{file.name}", documents(file)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.same", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("verb", choices=("record", "check"))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--files", type=Path, metavar="FOLDER", help="config files whose documents are compared too")
    parser.add_argument("--only", action="append", choices=list(RUNS), help="this run alone; may be repeated")
    words = parser.parse_args()
    words.folder.mkdir(parents=True, exist_ok=True)
    changed = looked = 0
    for name, record in measured(words.only or list(RUNS), words.files):
        kept = words.folder / f"{name}.json"
        text = json.dumps(record, indent=1, sort_keys=True, default=str)
        if words.verb == "record":
            kept.write_text(text, encoding="utf-8")
            continue
        looked += 1
        found = list(differences(json.loads(kept.read_text(encoding="utf-8")), json.loads(text)))
        changed += bool(found) and name.startswith("run-")
        for line in found:
            print(f"{name}{line}")
    if words.verb == "check":
        print(f"{looked} records, {changed} runs changed")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
