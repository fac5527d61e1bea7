"""One row a family of base models: everything that can be known of it without torch.

How it trains (loading, text, noise, previews) is an object of its own, which the row names; see docs/add-a-family.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from schemas.config import Option
from schemas.unet import Network, Shape, TextStack, UNet

BLOCKS_OF_A_UNET = "model.diffusion_model.input_blocks."


@dataclass(frozen=True)
class Signs:
    """How files show a family.

    Single files: all beginnings of one of `names` are there. A U-Net without text encoders: `label`, the width of its
    vector conditioning (0: any), or `context`, the width of the text it reads. diffusers folders: `pipeline`, the
    beginning of the class in model_index.json, or all `unet` settings in unet/config.json (None: unset or false). LoRA
    files: parts of tensors' names in `lora`, the width of the text encoder in `text`, `metadata` in their header.
    """

    names: tuple[tuple[str, ...], ...] = ()
    context: int | None = None
    label: int | None = None
    pipeline: str | None = None
    unet: Mapping[str, Any] | None = None
    lora: tuple[str, ...] = ()
    text: int | None = None
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True)
class Latents:
    """What a family's VAE makes of an image: `channels` numbers for each square of `side` x `side` pixels.

    The network sees (latents - shift) * scale.
    """

    channels: int = 4
    side: int = 8
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True)
class ModelSizes:
    """Parameters of a family's models at full size, and bytes of activations.

    Activation bytes are for one latent pixel of one image: `kept` all of them, `marks` only what gradient checkpointing
    keeps, `block` the largest block that it computes again; each for 2 and 4 bytes a number. `text_layers` are (layers,
    width) of each text encoder, `pooled` the width of a pooled text vector.
    """

    unet: int
    text: tuple[int, ...]
    text_layers: tuple[tuple[int, int], ...]
    kept: Mapping[int, int]
    marks: Mapping[int, int]
    block: Mapping[int, int]
    vae: int = 83_653_863
    pooled: int = 0


@dataclass(frozen=True)
class FamilyFacts:
    """A family: its names, how files show it, its sizes, and what the rules must know of it."""

    name: str
    title: str  # in messages
    implementation: str  # the module whose FAMILY trains it
    signs: Signs
    network: Network
    sizes: ModelSizes
    latents: Latents = Latents()
    text_parts: tuple[Literal["te", "te1", "te2"], ...] = ("te",)  # parts of adapters in its text encoders
    side: int = 512  # usual resolution
    previews: int = 512  # side of previews that name none
    bucket_step: int = 64  # divides the sides of its buckets
    cache_suffix: str = "sd"  # ends the names of cached latents
    clip_layers: int | None = None  # clip_skip goes from 1 to that; None: it has no effect
    text_layer: str = "the same layer"  # what is used where clip_skip has no effect
    original_paths: bool = False  # its LoRAs name modules of the U-Net by the paths in checkpoints
    caches_text: bool = False  # the outputs of its text encoders may be computed once
    text_projection: bool = False  # single files keep that matrix turned round
    fragile_vae: bool = False  # it overflows in fp16
    # options that mean nothing here, or cannot be carried out -> why
    ignores: Mapping[str, str] = field(default_factory=dict)
    lacks: Mapping[str, str] = field(default_factory=dict)
    v2: bool = False  # sd-scripts' flag of that name
    script: str = "train_network.py"  # sd-scripts' program for it
    flags: str = ""  # what sets a GUI form to the family
    # where a single file and a diffusers folder keep the parts
    prefixes: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            "unet": ("model.diffusion_model.",),
            "text": ("cond_stage_model.", "conditioner."),
            "vae": ("first_stage_model.",),
        }
    )
    folders: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"unet": ("unet",), "text": ("text_encoder", "text_encoder_2"), "vae": ("vae",)}
    )


CLIP_L = 123_060_480  # parameters of SD1.5's text encoder, the first of SDXL
SD15 = ModelSizes(
    859_520_964, (CLIP_L,), ((12, 768),), kept={2: 306_000, 4: 452_000}, marks={2: 48_700, 4: 73_800},
    block={2: 21_600, 4: 36_500},
)  # fmt: skip

SMALLEST_STEP = 32  # the least of `bucket_step`: what a config is held to while its family is not known

FAMILIES: dict[str, FamilyFacts] = {}


def register(facts: FamilyFacts) -> None:
    """Makes a family known to the whole program; one of that name is replaced."""
    FAMILIES[facts.name] = facts


def unregister(name: str) -> None:
    """Forgets a family, as tests do."""
    FAMILIES.pop(name, None)


register(FamilyFacts(
    name="sd15",
    title="SD 1.5",
    implementation="trainer.families.sd15",
    signs=Signs(((BLOCKS_OF_A_UNET, "cond_stage_model.transformer."),), context=768, unet={}, text=768,
                metadata=("sd_v1",)),
    network=UNet(768, (TextStack("cond_stage_model.transformer.text_model.encoder.layers", 12, 768),), linear=False),
    sizes=SD15,
    latents=Latents(scale=0.18215),
    clip_layers=12,
    flags="--set sdxl=false --set v2=false",
))  # fmt: skip

register(FamilyFacts(
    name="sd2",
    title="SD 2.x",
    implementation="trainer.families.sd2",
    signs=Signs(((BLOCKS_OF_A_UNET, "cond_stage_model.model."),), context=1024, unet={"use_linear_projection": True},
                text=1024, metadata=("sd_v2",)),
    # its files hold one text layer more than is used
    network=UNet(1024, (TextStack("cond_stage_model.model.transformer.resblocks", 24, 1024),), unused=1),
    sizes=replace(SD15, unet=865_910_724, text=(340_387_840,), text_layers=((23, 1024),)),
    latents=Latents(scale=0.18215),
    clip_layers=24,
    v2=True,
    flags="--set v2=true",
))  # fmt: skip

register(FamilyFacts(
    name="sdxl",
    title="SDXL",
    implementation="trainer.families.sdxl",
    signs=Signs(((BLOCKS_OF_A_UNET, "conditioner.embedders.1."),), context=2048, label=0,
                unet={"addition_embed_type": "text_time"}, metadata=("sdxl", "stable-diffusion-xl")),
    network=UNet(
        2048,
        (TextStack("conditioner.embedders.0.transformer.text_model.encoder.layers", 12, 768),
         TextStack("conditioner.embedders.1.model.transformer.resblocks", 32, 1280)),
        widths=(320, 640, 1280), depths=(0, 2, 10), middle=10, parts=("te1", "te2"), starts=(1, 10, 13),
        whole_middle=False,
    ),
    sizes=ModelSizes(
        2_567_463_684, (CLIP_L, 694_659_840), ((12, 768), (32, 1280)), kept={2: 517_000, 4: 833_000},
        marks={2: 37_800, 4: 67_200}, block={2: 14_700, 4: 18_300}, pooled=1280,
    ),
    latents=Latents(scale=0.13025),
    text_parts=("te1", "te2"),
    side=1024,
    previews=1024,
    bucket_step=32,
    cache_suffix="sdxl",
    text_layer="the last layer but one",
    original_paths=True,
    caches_text=True,
    text_projection=True,
    fragile_vae=True,
    flags="--set sdxl=true",
    script="sdxl_train_network.py",
))  # fmt: skip

# Families that are recognised, to be refused by name.
OTHERS = {  # flux before sd3: both have names of a third text encoder
    "sdxl-refiner": Signs(
        ((BLOCKS_OF_A_UNET, "conditioner.embedders.0.model."),), context=1280, label=2560,
        unet={"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2560},
    ),
    "flux": Signs((("model.diffusion_model.double_blocks.",), ("double_blocks.",)), pipeline="Flux",
                  lora=("double_blocks_", "single_transformer_blocks_", "single_blocks_")),
    "sd3": Signs((("model.diffusion_model.joint_blocks.",), ("joint_blocks.",)), pipeline="StableDiffusion3",
                 lora=("joint_blocks_", "transformer_transformer_blocks_", "lora_te3_")),
}  # fmt: skip


def facts_of(name: str | None) -> FamilyFacts | None:
    """The row of a family that can be trained; None for any other name."""
    return FAMILIES.get(name or "")


def unet_of(name: str | None) -> UNet:
    """The U-Net of a family; of one that is not known or has none, the first row's."""
    networks = (facts.network for facts in (facts_of(name), *FAMILIES.values()) if facts is not None)
    return next(network for network in networks if isinstance(network, UNet))


def first() -> str:
    """The family that is taken where nothing says another."""
    return next(iter(FAMILIES))


def holding(trait: str) -> list[FamilyFacts]:
    """The families of which a trait of the row holds."""
    return [facts for facts in FAMILIES.values() if getattr(facts, trait)]


def only_for(option: Option) -> list[str]:
    """Titles of the families for which alone an option exists; none where it exists for all."""
    trait = option.marks.get("only")
    return [facts.title for facts in holding(trait)] if trait else []


def titles(joined: Literal["and", "or"] = "or") -> str:
    """All families in words."""
    *most, last = (facts.title for facts in FAMILIES.values())
    return f"{', '.join(most)} {joined} {last}" if most else last


def _signs() -> dict[str, Signs]:
    """What is looked for, in this order: the most particular first."""
    own = {name: facts.signs for name, facts in reversed(FAMILIES.items())}
    return {**OTHERS, **own}


def by_names(shapes: Mapping[str, Shape]) -> str | None:
    """The family that the names and shapes of a checkpoint's tensors show; None where they show none."""
    found: dict[str, bool] = {}

    def has(start: str) -> bool:
        if start not in found:
            found[start] = any(name.startswith(start) for name in shapes)
        return found[start]

    for family, signs in _signs().items():
        if any(all(map(has, starts)) for starts in signs.names):
            return family
    if not has(BLOCKS_OF_A_UNET):
        return None
    label = shapes.get("model.diffusion_model.label_emb.0.0.weight")
    if label:
        kinds = {signs.label: family for family, signs in _signs().items() if signs.label is not None}
        return kinds.get(label[-1], kinds.get(0))
    widths = {shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) > 1}
    return by_context(widths)


def by_context(widths: set[int]) -> str | None:
    """The family whose network reads text of this width; None unless there is exactly one width."""
    kinds = {signs.context: family for family, signs in _signs().items() if signs.context}
    return kinds.get(widths.pop()) if len(widths) == 1 else None


def by_settings(pipeline: str, unet: Mapping[str, Any]) -> str | None:
    """The family of a diffusers folder: the class of its model_index.json, the settings of its U-Net."""
    for family, signs in _signs().items():
        if signs.pipeline and pipeline.startswith(signs.pipeline):
            return family
    if unet.get("_class_name") != "UNet2DConditionModel":
        return None
    for family, signs in _signs().items():
        if signs.unet is not None and all(unet.get(key) == value for key, value in signs.unet.items()):
            return family
    return None


def by_lora_names(parts: str) -> str | None:
    """The family whose LoRAs alone have such names; `parts` are all names of a file's tensors, flat, in one text."""
    return next((family for family, signs in _signs().items() if any(part in parts for part in signs.lora)), None)


def by_parts(parts: set[str]) -> str | None:
    """The family that alone has text encoders of these names ("te1", "te2")."""
    named = [facts.name for facts in FAMILIES.values() if parts & {*facts.text_parts} - {"te"}]
    return named[0] if len(named) == 1 else None


def by_depth(block: int) -> str:
    """The family whose LoRAs keep the paths of checkpoints; the first where there are more blocks than it has."""
    fit = (facts for facts in holding("original_paths") if block < 3 * len(unet_of(facts.name).widths))
    return next((facts.name for facts in fit), first())


def by_attention(*, linear: bool | None = None) -> str:
    """The family whose first level has attention, with such ends; without `linear`, one whose first level has none."""
    for facts in FAMILIES.values():
        unet = facts.network
        if isinstance(unet, UNet) and bool(unet.depths[0]) is (linear is not None) and linear in (None, unet.linear):
            return facts.name
    return "unknown"


def by_text(width: int) -> str | None:
    """The family with a text encoder of that width, where one alone has it."""
    return next((family for family, signs in _signs().items() if signs.text == width), None)


def by_metadata(said: str) -> str | None:
    """The family that a LoRA's header names in ss_base_model_version or modelspec.architecture."""
    return next((family for family, signs in _signs().items() if any(mark in said for mark in signs.metadata)), None)
