"""A base model of random weights in the real single-file layout; `python -m benchmarks.random_checkpoint -h`.

For measuring, the demo and tests, where no real weights are at hand. Tensors are drawn and written one by one, so that
a full-size SDXL file needs little memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from schemas.families import FAMILIES
from schemas.terminal import say
from trainer.families import architecture, single_file
from trainer.families.architecture import Config
from trainer.families.ldm_keys import Shape
from trainer.families.single_file import Part, PartName

DTYPES = {"fp32": ("F32", torch.float32), "fp16": ("F16", torch.float16), "bf16": ("BF16", torch.bfloat16)}
CHUNK = 1 << 24  # numbers drawn at once
TINY_UNET: dict[str, Config] = {
    "sd15": {"block_out_channels": [32, 64, 96, 96], "cross_attention_dim": 32},
    "sd2": {"block_out_channels": [32, 64, 96, 96], "cross_attention_dim": 32, "attention_head_dim": [1, 1, 1, 1]},
    "sdxl": {
        "block_out_channels": [32, 64, 96],
        "transformer_layers_per_block": [1, 1, 2],
        "attention_head_dim": [1, 1, 1],
        "cross_attention_dim": 64,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 32 + 6 * 8,
    },
}
TINY_VAE: Config = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
TINY_TEXT: Config = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "projection_dim": 32,
}


def configs(family: str, *, tiny: bool = False) -> dict[PartName, Config]:
    """Configs by part: the shipped full-size ones, or the same structure at widths of 32 to 96 channels."""
    full = architecture.shipped(family)
    small: dict[str, Config] = {"unet": TINY_UNET[family], "vae": TINY_VAE}
    names: list[PartName] = ["unet", "vae", "text_encoder"]
    if family == "sdxl":
        names.append("text_encoder_2")
    found = {name: full[name] | (small.get(name, TINY_TEXT) if tiny else {}) for name in names}
    if family == "sd2":  # files hold the last layer too, which is never used
        found["text_encoder"]["num_hidden_layers"] += 1
    return found


def spread(family: str, *, tiny: bool = False) -> dict[str, tuple[Shape, float | None]]:
    """LDM name -> (shape, standard deviation). Deviation 0 means zeros, None means ones.

    Weights have deviation 1/sqrt(inputs), so that activations keep their size; norms are the identity.
    """
    found: dict[str, tuple[Shape, float | None]] = {}
    for name, config in configs(family, tiny=tiny).items():
        part = Part(name, config, single_file.names_of(name, config, family))
        module = part.build()
        norms = {path for path, child in module.named_modules() if isinstance(child, nn.GroupNorm | nn.LayerNorm)}
        for path, tensor in module.state_dict().items():
            stored, shape = part.names(path), tuple(tensor.shape)
            found[stored.name] = stored.shape(shape), _deviation(path, shape, norms)
    return found


def _deviation(path: str, shape: Shape, norms: set[str]) -> float | None:
    module, _, kind = path.rpartition(".")
    if kind == "bias":
        return 0.0
    if module in norms:
        return None
    return 0.02 if "embeddings." in path else 1 / math.sqrt(math.prod(shape[1:]))


def write(path: Path, family: str, *, tiny: bool = False, dtype: str = "fp16", seed: int = 0) -> None:
    """A checkpoint of random weights, whole or not at all; the same seed gives the same bytes."""
    code, kind = DTYPES[dtype]
    tensors = dict(sorted(spread(family, tiny=tiny).items()))
    header: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, _) in tensors.items():
        start, end = end, end + math.prod(shape) * kind.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for shape, deviation in tensors.values():
            for chunk in _numbers(math.prod(shape), deviation, generator):
                stream.write(chunk.to(kind).view(torch.uint8).numpy().data)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def _numbers(count: int, deviation: float | None, generator: torch.Generator) -> Iterator[torch.Tensor]:
    for start in range(0, count, CHUNK):
        chunk = torch.ones(min(CHUNK, count - start))
        if deviation is not None:
            chunk = chunk.normal_(0, deviation, generator=generator) if deviation else chunk.zero_()
        yield chunk


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_checkpoint", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--tiny", action="store_true", help="the same structure at widths of 32 to 96 channels")
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(words)
    write(given.out, given.family, tiny=given.tiny, dtype=given.dtype, seed=given.seed)
    say(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
