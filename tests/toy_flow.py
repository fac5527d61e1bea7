"""A base-model family that the product does not know: a small transformer that learns a flow (Liu et al. 2022).

Everything differs from Stable Diffusion: latents of six channels for 4 x 4 pixels, with a shift; text as bytes; another
target, other times, other samplers. `register(FACTS)` is all that makes it known.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from schemas import TrainConfig
from schemas.families import FamilyFacts, Latents, ModelSizes, Signs
from schemas.unet import Layer, Shape
from trainer.families import Conditioning, Models, Noised, Predict, Sizes, Target

WIDTH, TOKENS, BLOCKS = 16, 24, 2
LINEARS = ("q", "k", "v", "out", "mlp")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in LINEARS:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        read = torch.cat([x, text], dim=1)
        x = x + self.out(F.scaled_dot_product_attention(self.q(x), self.k(read), self.v(read)))
        return x + self.mlp(F.gelu(x))


class Transformer(nn.Module):
    """Velocity [B,6,h,w] of noised latents at `timesteps` [B] in 0..1000, given text [B,T,D]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 6)
        self.time = nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        height, width = noisy.shape[2:]
        x = self.first(noisy.flatten(2).transpose(1, 2)) + self.time((timesteps / 1000).to(noisy)[:, None, None])
        for block in self.blocks:
            x = block(x, text)
        return self.last(x).transpose(1, 2).unflatten(2, (height, width))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.proj = nn.Embedding(256, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.proj(self.table(ids))


class Squares(nn.Module):
    """The VAE: each square of 4 x 4 pixels is six numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(48, 6), nn.Linear(6, 48)


PARTS = {"flow.": Transformer, "words.": Words, "squares.": Squares}


def write_checkpoint(path: Path) -> Path:
    """A base model of random weights."""
    torch.manual_seed(0)
    tensors = {prefix + name: tensor for prefix, kind in PARTS.items() for name, tensor in kind().state_dict().items()}
    save_file(tensors, path)
    return path


class Network:
    """What the plan asks for: the layers that adapters know."""

    def layers(self, shapes: Mapping[str, Shape], *, folder: bool) -> Iterator[Layer]:
        for name, shape in shapes.items():
            if name.startswith("flow.blocks.") and name.endswith(".weight"):
                path = name.removeprefix("flow.").removesuffix(".weight").replace(".", "_")
                yield Layer("unet", path, "transformer", shape, None, True)
        if "words.proj.weight" in shapes:
            yield Layer("te", "proj", "text", shapes["words.proj.weight"], None, True)

    def usual(self) -> Iterator[Layer]:
        names = [f"flow.blocks.{block}.{name}.weight" for block in range(BLOCKS) for name in LINEARS]
        return self.layers(dict.fromkeys([*names, "words.proj.weight"], (WIDTH, WIDTH)), folder=False)


class Flow:
    """Straight lines from latents to noise; the network says the velocity along them."""

    def noised(self, latents: Tensor, timestep: int | None = None) -> Noised:
        noise = torch.randn_like(latents)
        times = torch.sigmoid(torch.randn(len(latents), device=latents.device))
        if timestep is not None:
            times = torch.full_like(times, timestep / 1000)
        t = times.view(-1, 1, 1, 1)
        return Noised((1 - t) * latents + t * noise, times * 1000, noise - latents)

    def loss(self, predicted: Tensor, noised: Noised, weights: Tensor, masks: Tensor | None) -> Tensor:
        errors = (predicted.float() - noised.target) ** 2
        if masks is not None:
            errors = errors * F.interpolate(masks.to(errors), size=errors.shape[-2:], mode="area")
        return (errors.mean((1, 2, 3)) * weights).mean()

    def held_out(self) -> list[int]:
        return [250, 500, 750]

    def sample(self, predict: Predict, noise: Tensor, *, sampler: str, steps: int) -> Tensor:
        times, latents = torch.linspace(1, 0, steps + 1), noise
        for now, then in itertools.pairwise(times):
            latents = latents + (then - now) * predict(latents, now * 1000)
        return latents


class ToyFlow:
    @property
    def facts(self) -> FamilyFacts:
        return FACTS

    def load(self, config: TrainConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> Models:
        tensors, modules = load_file(str(config.pretrained_model_name_or_path)), list[nn.Module]()
        for prefix, kind in PARTS.items():
            module = kind()
            module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            modules.append(module.to(device, dtype).requires_grad_(False).eval())
        network, words, squares = modules
        return Models(FACTS.name, network, squares, (words,), ())

    def encode(self, models: Models, captions: Sequence[str], config: TrainConfig) -> Conditioning:
        rows = [list(caption.encode()[:TOKENS].ljust(TOKENS)) for caption in captions]
        words = models.text_encoders[0]
        return Conditioning(words(torch.tensor(rows, device=next(words.parameters()).device)))

    encode_prompts = encode

    def predict(
        self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, sizes: Sizes | None
    ) -> Tensor:
        found: Tensor = unet(noisy, timesteps, conditioning.hidden)
        return found

    def noise_process(self, config: TrainConfig, device: torch.device | str = "cpu") -> Flow:
        return Flow()

    def to_latents(self, vae: Any, pixels: Tensor, draws: Any = None) -> Tensor:
        squares = F.pixel_unshuffle(pixels, 4).movedim(1, -1)
        latents: Tensor = vae.inside(squares).movedim(-1, 1).float()
        return latents

    def to_pixels(self, vae: Any, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(vae.outside(latents.movedim(1, -1)).movedim(-1, 1), 4).float()

    def targets(self, models: Models) -> list[Target]:
        found = [Target("te", "proj", "lora_te_proj", "linear", "text", None)]
        for path, module in models.unet.named_modules():
            if path.startswith("blocks.") and isinstance(module, nn.Linear):
                key = "lora_unet_" + path.replace(".", "_")
                found.append(Target("unet", path, key, "linear", "transformer", None))
        return found

    def text_settings(self, config: TrainConfig) -> dict[str, Any]:
        return {}

    def to_arrays(self, states: Conditioning) -> dict[str, Tensor]:
        return {"bytes": states.hidden}

    def from_arrays(self, arrays: Mapping[str, Tensor]) -> Conditioning:
        return Conditioning(arrays["bytes"])

    def metadata(self, config: TrainConfig) -> dict[str, str]:
        return {"ss_base_model_version": "toy_flow_v1", "modelspec.prediction_type": "velocity",
                "modelspec.architecture": "toy-flow/lora"}  # fmt: skip


FACTS = FamilyFacts(
    name="toy-flow",
    title="Toy Flow",
    implementation=__name__,
    signs=Signs(names=(("flow.blocks.", "words."),), metadata=("toy_flow",)),
    network=Network(),
    sizes=ModelSizes(
        unet=3_000, text=(4_368,), text_layers=((1, WIDTH),), kept={2: 2_000, 4: 4_000}, marks={2: 200, 4: 400},
        block={2: 100, 4: 200}, vae=630,
    ),
    latents=Latents(channels=6, side=4, scale=2.0, shift=0.25),
    side=64,
    previews=68,
    cache_suffix="toyflow",
    caches_text=True,
    ignores=dict.fromkeys(
        ("v_parameterization", "zero_terminal_snr", "min_snr_gamma", "noise_offset", "sample_sampler"),
        "a flow has its own noise, target and weights",
    ),
    lacks={"gradient_checkpointing": "two blocks need none"},
    prefixes={"unet": ("flow.",), "text": ("words.",), "vae": ("squares.",)},
)  # fmt: skip
FAMILY = ToyFlow()
