"""`python -m benchmarks.memory`: the memory of a whole training step at full size, followed tensor by tensor.

No GPU and no memory is needed: the models are of fake tensors, which have shapes and no numbers, and a dispatch mode
counts every storage from its birth to its death, forward and backward, under the rules by which a GPU's autocast
chooses number formats. Everything that runs is the trainer's own: its families, adapters, checkpointing, loss.

What it cannot see is what a kernel takes inside itself, the allocator's rounding and the CUDA context; `trainer.plan`
adds these as its overhead.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import RESULTS, machine_facts
from schemas import ConfigError, TrainConfig
from schemas.files.writing import write_atomically
from schemas.network_args import SUPPORTED
from schemas.terminal import say
from trainer import setup
from trainer.adapters import attach
from trainer.families import Models, Sizes, get
from trainer.families.random_checkpoint import configs
from trainer.families.single_file import build
from trainer.families.tokenizer import clip_tokenizer
from trainer.learning import objective
from trainer.learning.float8 import to_float8
from trainer.learning.quantized import quantize
from trainer.learning.streaming import Streamer, stream
from trainer.plan.activations import measured
from trainer.plan.adapt import adapt_to
from trainer.plan.memory import estimate, trains
from trainer.setup import precision, ready_models

Segment = tuple[str, int, int]  # name, bytes that its forward leaves, most bytes that its backward holds beyond those


class Liveness(TorchDispatchMode):
    """Counts the bytes of all storages that live: `live` now, `peak` since `begin` was called last."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.gradients = 0
        self._known: weakref.WeakKeyDictionary[Any, list[int]] = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self.born(value)
        return made

    def born(self, tensor: Tensor) -> None:
        """Counts the storage of `tensor`, unless it is known."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = [storage.nbytes()]
        self._known[storage] = size
        weakref.finalize(storage, self._died, size)
        self.live += size[0]
        self.peak = max(self.peak, self.live)

    def ignore(self, storages: Iterable[Any]) -> None:
        """These lie in main memory."""
        for storage in storages:
            self._known[storage] = [0]

    def _died(self, size: list[int]) -> None:
        self.live -= size[0]

    def count_as_gradient(self, parameter: Tensor) -> None:
        """Takes the gradient of `parameter` out of the count and into `gradients`."""
        storage = None if parameter.grad is None else parameter.grad.untyped_storage()
        size = self._known.get(storage) if storage is not None else None
        if size is not None:
            self.gradients += size[0]
            self.live -= size[0]
            size[0] = 0

    def begin(self) -> int:
        """What lives now; the peak is taken anew from here."""
        self.peak = self.live
        return self.live


@contextmanager
def autocast_of_a_gpu() -> Iterator[None]:
    """Where autocast's rules for CPUs differ from those for GPUs, those of GPUs: norms are computed in 32 bit."""
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

    def in_32_bit(operator: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return operator(*(arg.float() if isinstance(arg, Tensor) else arg for arg in args))

        return run

    try:
        library.impl("layer_norm", in_32_bit(torch.layer_norm))
        library.impl("group_norm", in_32_bit(torch.group_norm))
        yield
    finally:
        library._destroy()


@dataclass
class Followed:
    """What a step held. `baseline` lies there between steps; segments are those of the U-Net, in forward order."""

    baseline: int = 0
    peak: int = 0  # of forward and backward together, the baseline and the gradients at hand included
    gradients: int = 0
    flops: int = 0  # of forward and backward
    start: int = 0  # what lives when the U-Net begins, beyond the baseline
    segments: list[Segment] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of the trained numbers, by segment


class Watch:
    """Notes what lives wherever the U-Net enters or leaves one of its units, forward and backward."""

    def __init__(self, liveness: Liveness) -> None:
        self.liveness = liveness
        self.names: list[str] = []
        self.ends: list[int] = []  # live bytes when the segment's forward ended
        self.peaks: dict[int, int] = {}  # most live bytes in the segment's backward
        self.grads: dict[int, int] = {}  # bytes of gradients made in it
        self.now = -1
        self.most = 0

    def unit(self, run: Callable[..., Any], module: nn.Module, inputs: tuple[Any, ...], name: str) -> Any:
        """`run(module, *inputs)`, watched."""
        self._close(f"before {name}")
        number = len(self.names)
        if isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: self._enter(number - 1))
        made = run(module, *inputs)
        self._close(name)
        if made.requires_grad:
            made.register_hook(lambda _: self._enter(number))
        return made

    def _close(self, name: str) -> None:
        self.names.append(name)
        self.ends.append(self.liveness.live)

    def forward_ends(self, output: Tensor) -> None:
        self._close("end")
        number = len(self.names) - 1
        output.register_hook(lambda _: self._enter(number))

    def _enter(self, number: int) -> None:
        self.leave()
        self.now = number
        self.liveness.begin()

    def leave(self) -> None:
        """The running segment's backward is over."""
        if self.now >= 0:
            self.peaks[self.now] = self.liveness.peak
            self.most = max(self.most, self.liveness.peak + self.liveness.gradients)
            self.grads[self.now] = self.liveness.gradients - sum(self.grads.values())


def _apply_anew(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply for fake tensors, which torch cannot swap: what is converted becomes another parameter."""
    for child in module.children():
        child._apply(convert)
    for name, weight in module._parameters.items():
        if weight is not None and (made := convert(weight.detach())).dtype != weight.dtype:
            module._parameters[name] = nn.Parameter(made, weight.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def _known_product(tensor: Any, *args: Any, prod: Any = Tensor.prod) -> Any:
    """Tensor.prod, of a fake tensor with known numbers known too: LyCORIS counts a kernel's places with it."""
    constant = getattr(tensor, "constant", None)
    return prod(tensor, *args) if constant is None or args else torch.tensor(math.prod(constant.tolist()))


def fake_models(family: str, dtype: torch.dtype, vae_dtype: torch.dtype) -> Models:
    """The family's full-size modules, frozen; to be called under a FakeTensorMode."""
    parts: dict[str, nn.Module] = {}
    for name, config in configs(family).items():
        if family == "sd2" and name == "text_encoder":
            config = config | {"num_hidden_layers": config["num_hidden_layers"] - 1}  # the file's last is not loaded
        parts[name] = build(name, config).to(vae_dtype if name == "vae" else dtype).requires_grad_(False).eval()
    encoders = tuple(parts[name] for name in ("text_encoder", "text_encoder_2") if name in parts)
    return Models(family, parts["unet"], parts["vae"], encoders, tuple(clip_tokenizer() for _ in encoders))


def bytes_of(modules: list[nn.Module]) -> int:
    """Bytes of the parameters and buffers of `modules`, each storage once."""
    storages = {
        id(tensor.untyped_storage()): tensor.untyped_storage()
        for module in modules
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storage.nbytes() for storage in storages.values())


def attention_work(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of an attention forward, from the shapes [B, heads, tokens, width]."""
    return math.prod(query) * key[2] * 4


def attention_work_backward(_: Any, query: Sequence[int], key: Sequence[int], *__: Any, **___: Any) -> int:
    """FLOPs of its backward: five products for two."""
    return attention_work(query, key) * 5 // 2


ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_work,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_work_backward,
}


def follow(config: TrainConfig, family_name: str, bucket: tuple[int, int], *, work: bool = False) -> Followed:
    """One step of `config` on images of `bucket` (width, height): forward and backward; `work`: count FLOPs instead."""
    family, dtype = get(family_name), precision(config)
    found = Followed()
    anew = patch.object(nn.Module, "_apply", _apply_anew)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cpu"), anew, autocast_of_a_gpu():
        models = fake_models(family_name, dtype, torch.float32 if config.no_half_vae else dtype)
        if config.fp8_base or config.fp8_base_unet:
            unet = () if config.quantize_base else (models.unet,)
            for model in (*unet, *(models.text_encoders if config.fp8_base else ())):
                to_float8(model)
        if config.quantize_base:
            quantize(models.unet, config.quantize_base)
        with patch.object(Tensor, "prod", _known_product):
            adapter = attach(models, family.targets(models), config)
        place: Any = SimpleNamespace(device=torch.device("cpu"))
        caches: Any = SimpleNamespace(latents=config.cache_latents, texts=config.cache_text_encoder_outputs)
        streamers: list[Streamer] = []
        with patch.object(setup, "stream", partial(_kept, streamers)):
            ready_models(models, adapter, config, place, caches)
        away = {id(storage): storage for one in streamers for storage in one.host_storages()}
        adapter.groups(config)
        adapter.train()
        resident = [models.unet]
        resident += [] if caches.texts else models.text_encoders
        resident += [] if caches.latents else [models.vae]
        trained = {id(weight): weight for weight in adapter.parameters()}
        found.baseline = bytes_of([*resident, *adapter.layers.values()]) - sum(
            storage.nbytes() for storage in away.values()
        )
        found.baseline += sum(buffer.nbytes for one in streamers for buffer in one.buffers)
        liveness = Liveness()
        liveness.ignore(away.values())
        watch = Watch(liveness)
        for weight in trained.values():
            weight.register_post_accumulate_grad_hook(liveness.count_as_gradient)
        _watched(models.unet, watch, config)
        with liveness:
            for module in (*resident, *adapter.layers.values()):
                for tensor in (*module.parameters(), *module.buffers()):
                    liveness.born(tensor)
            for one in streamers:
                for buffer in one.buffers:
                    liveness.born(buffer)
            at_rest = liveness.begin()
            counter = FlopCounterMode(display=False, custom_mapping=ATTENTION)
            with counter if work else nullcontext():  # counting keeps some tensors a little longer
                _step(config, family, models, adapter, bucket, watch)
    found.flops = counter.get_total_flops() if work else 0
    found.gradients = liveness.gradients
    found.peak = found.baseline + watch.most - at_rest
    found.start = watch.ends[0] - at_rest
    for number, (name, end) in enumerate(zip(watch.names, watch.ends, strict=True)):
        before = watch.ends[number - 1] if number else at_rest
        found.segments.append((name, end - before, watch.peaks.get(number, end) - end))
        found.shares.append(watch.grads.get(number, 0) / max(1, liveness.gradients))
    return found


def _kept(streamers: list[Streamer], *given: Any) -> Streamer | None:
    made = stream(*given)
    streamers.extend([made] if made else [])
    return made


def _watched(unet: Any, watch: Watch, config: TrainConfig) -> None:
    """Puts the watch where diffusers checkpoints a unit, and keeps what stands there."""
    names = {id(module): name for name, module in unet.named_modules()}
    modules = [module for module in unet.modules() if hasattr(module, "gradient_checkpointing")]
    for module in modules:
        again = config.gradient_checkpointing or config.streamed_blocks
        checkpointed = getattr(module, "_gradient_checkpointing_func", None) if again else None
        module.gradient_checkpointing = True
        module.training = True

        def call(inner: Any, *inputs: Any, run: Any = checkpointed) -> Any:
            return watch.unit(run or (lambda one, *rest: one(*rest)), inner, inputs, names[id(inner)])

        module._gradient_checkpointing_func = call


def _step(
    config: TrainConfig, family: Any, models: Models, adapter: Any, bucket: tuple[int, int], watch: Watch
) -> None:
    batch, dtype = config.train_batch_size, precision(config)
    latents = torch.randn(batch, 4, bucket[1] // 8, bucket[0] // 8)
    schedule = objective.noise_schedule(v=config.v_parameterization)
    noise = objective.draw_noise(latents, config)
    timesteps = torch.randint(0, 1000, (batch,))
    noisy = objective.add_noise(latents, noise, timesteps, schedule, config)
    wanted = objective.target(latents, noise, timesteps, schedule)
    full = torch.tensor([[bucket[1], bucket[0]]] * batch)
    sizes = Sizes(full, torch.zeros_like(full), full)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with torch.set_grad_enabled(trains(config)[1] and not config.cache_text_encoder_outputs):
            conditioning = family.encode(models, ["a photo"] * batch, config).to(torch.device("cpu"), dtype)
        watch._close("text")
        predicted = family.predict(models.unet, noisy.to(dtype), timesteps, conditioning, sizes)
    loss = objective.loss(predicted, wanted, timesteps, torch.ones(batch), None, config, schedule)
    watch.forward_ends(predicted)
    loss.backward()
    watch.leave()


# ------------------------------------------------------------------------------------------ against the plan's estimate


def compared(file: str, known: int | None = None) -> dict[str, Any] | None:
    """What a step of a config (any format) holds (`known` bytes, if measured before), and what the plan says.

    None for what we do not train.
    """
    from launcher.check.resolve import resolve

    resolved = resolve(file)
    config, family = resolved.config, str(resolved.draft.family or "sd15")
    config, _ = adapt_to(config, gpu=True, packages={"bitsandbytes", "xformers"})
    if not measured(family) or resolved.draft.kind != "lora" or config.network_module not in (None, *SUPPORTED):
        return None
    side = [int(word) for word in str(config.resolution or 512).replace("x", ",").split(",")]
    bucket = (side[0], side[-1])
    config = dataclasses.replace(config, cache_latents=True, network_weights=None, base_weights=())
    peak, memory = known or follow(config, family, bucket).peak, estimate(config, family, bucket)
    planned = sum(memory.parts.values()) - memory.parts["overhead"] - memory.parts["optimizer"]
    return {
        "config": Path(file).stem.rpartition("__")[2],
        "family": family,
        "network": f"{config.network_module} {' '.join(config.network_args)}".strip(),
        "rank": config.network_dim or 4,
        "batch": config.train_batch_size,
        "side": list(bucket),
        "precision": config.mixed_precision,
        "checkpointing": config.gradient_checkpointing,
        "text_encoders": trains(config)[1],
        "followed_bytes": peak,
        "planned_bytes": planned,
        "error": round(planned / peak - 1, 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compares the plan with followed steps; a step that RESULT holds already is not followed again."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", help="configs of any format, or names of shipped presets (all)")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "memory.json", metavar="RESULT")
    parser.add_argument("--most", type=int, default=1 << 30, metavar="N", help="configs measured in this call")
    asked = parser.parse_args(argv)
    document = json.loads(asked.output.read_text(encoding="utf-8")) if asked.output.is_file() else {"configs": []}
    rows: dict[str, Any] = {row["config"]: row for row in document["configs"]}
    presets = sorted(path.stem for path in (Path(__file__).parent.parent / "presets").glob("*.json"))
    most = asked.most
    for file in asked.files or presets:
        name = Path(file).stem.rpartition("__")[2]
        known = rows.get(name, {}).get("followed_bytes")
        if rows.get(name, {}).get("skipped") or (known is None and not most):
            continue
        most -= known is None
        try:
            rows[name] = compared(file, known) or {"config": name, "skipped": True}
        except ConfigError as fault:
            rows[name] = {"config": name, "skipped": True}
            say(f"{name}: {fault.problems[0]}")
        row = rows[name]
        if not row.get("skipped"):
            say(f"{name}: followed {row['followed_bytes'] / 1e9:.2f} GB, planned {row['planned_bytes'] / 1e9:.2f} GB")
        text = json.dumps({**machine_facts(), "configs": list(rows.values())}, indent=1) + "\n"
        write_atomically(asked.output, lambda stream, text=text: stream.write(text.encode("utf-8")))  # type: ignore[misc]
    return 0 if most else 3


if __name__ == "__main__":
    sys.exit(main())
