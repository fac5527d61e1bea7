"""LoRA_type of the form <-> network_module and network_args of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.formats.kohya_gui.table import unset

BLOCKS = (
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
    "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas",
)  # fmt: skip
DROPOUTS = ("rank_dropout", "module_dropout")
CONV = ("conv_dim", "conv_alpha")
PRESET = ("preset", *CONV)
FLUX = (
    "img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "single_mod_dim", "txt_attn_dim", "txt_mlp_dim",
    "txt_mod_dim", "in_dims", "train_double_block_indices", "train_single_block_indices", "ggpo_beta", "ggpo_sigma",
    "train_blocks", "split_qkv", "train_t5xxl",
)  # fmt: skip
LORAPLUS = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
# Names of network_args that the form's key spells differently.
KEYS = {"preset": "LyCORIS_preset", "constraint": "constrain", "block_size": "unit", "train_blocks": "split_mode"}


@dataclass(frozen=True)
class LoraType:
    """One choice of LoRA_type: `always` are sent whatever they hold, `given` only when they hold something."""

    module: str
    always: tuple[str, ...] = ()
    given: tuple[str, ...] = ()


_KOHYA = (*BLOCKS, *DROPOUTS)
_TENSOR = (
    *PRESET, "use_tucker", "rank_dropout", "bypass_mode", "dora_wd", "module_dropout", "use_tucker", "use_scalar",
    "rank_dropout_scale", "algo", "train_norm",
)  # fmt: skip
_LOKR = (
    *PRESET, "use_tucker", "rank_dropout", "bypass_mode", "dora_wd", "module_dropout", "factor", "use_cp",
    "use_scalar", "decompose_both", "rank_dropout_scale", "algo", "train_norm",
)  # fmt: skip
_ROTATION = (*PRESET, *DROPOUTS, "use_tucker", "rank_dropout_scale", "algo", "train_norm")
_DIAGONAL = (
    *PRESET, *DROPOUTS, "use_tucker", "rank_dropout_scale", "constraint", "rescaled", "algo", "train_norm",
)  # fmt: skip

TYPES: dict[str, LoraType] = {
    "Standard": LoraType("networks.lora", given=_KOHYA),
    "Kohya LoCon": LoraType("networks.lora", always=CONV, given=_KOHYA),
    "LoRA-FA": LoraType("networks.lora_fa", given=_KOHYA),
    "Kohya DyLoRA": LoraType("networks.dylora", given=(*CONV, *BLOCKS, "unit", *DROPOUTS)),
    "Kohya LoHa": LoraType("networks.loha", given=(*CONV, "use_tucker", *DROPOUTS)),
    "Kohya LoKr": LoraType("networks.lokr", given=(*CONV, "use_tucker", *DROPOUTS, "factor")),
    "LyCORIS/LoCon": LoraType("lycoris.kohya", always=_TENSOR),
    "LyCORIS/LoHa": LoraType("lycoris.kohya", always=_TENSOR),
    "LyCORIS/LoKr": LoraType("lycoris.kohya", always=_LOKR),
    "LyCORIS/DyLoRA": LoraType(
        "lycoris.kohya", always=(*PRESET, "use_tucker", "block_size", *DROPOUTS, "algo", "train_norm")
    ),
    "LyCORIS/GLoRA": LoraType(
        "lycoris.kohya", always=(*PRESET, "use_tucker", *DROPOUTS, "rank_dropout_scale", "algo", "train_norm")
    ),
    "LyCORIS/iA3": LoraType("lycoris.kohya", always=(*PRESET, "train_on_input", "algo")),
    "LyCORIS/BOFT": LoraType("lycoris.kohya", always=_ROTATION),
    "LyCORIS/Diag-OFT": LoraType("lycoris.kohya", always=_DIAGONAL),
    "LyCORIS/Native Fine-Tuning": LoraType(
        "lycoris.kohya", always=("preset", *DROPOUTS, "rank_dropout_scale", "algo", "train_norm")
    ),
    "Flux1": LoraType("networks.lora_flux", given=(*FLUX, *DROPOUTS)),
    "Flux1 OFT": LoraType("networks.oft_flux", given=("enable_all_linear",)),
    "HunyuanImage-2.1": LoraType("networks.lora_hunyuan_image", given=DROPOUTS),
    "Anima": LoraType("networks.lora_anima", given=DROPOUTS),
    "Lumina": LoraType("networks.lora_lumina", given=DROPOUTS),
}
ALGOS = {
    "LyCORIS/LoCon": "locon", "LyCORIS/LoHa": "loha", "LyCORIS/LoKr": "lokr", "LyCORIS/DyLoRA": "dylora",
    "LyCORIS/GLoRA": "glora", "LyCORIS/iA3": "ia3", "LyCORIS/BOFT": "boft", "LyCORIS/Diag-OFT": "diag-oft",
    "LyCORIS/Native Fine-Tuning": "full",
}  # fmt: skip
# Arguments that say what the module does without them anyway.
IDLE = {
    ("preset", "full"), ("use_tucker", "False"), ("use_cp", "False"), ("rank_dropout", "0"), ("module_dropout", "0"),
    ("dora_wd", "False"), ("bypass_mode", "False"), ("use_scalar", "False"), ("rank_dropout_scale", "False"),
    ("train_norm", "False"), ("factor", "-1"), ("constraint", "0"), ("rescaled", "False"),
    ("train_on_input", "True"), ("train_on_input", "False"),
}  # fmt: skip


def key_of(argument: str) -> str:
    """The form's key for a name in network_args."""
    return KEYS.get(argument, argument)


def module_of(values: Mapping[str, Any], family: str) -> str:
    """network_module for a form."""
    kind = values["LoRA_type"]
    sd3 = family == "sd3" and kind in ("Standard", "Kohya LoCon")
    return "networks.lora_sd3" if sd3 else TYPES[kind].module


def pairs_of(values: Mapping[str, Any], family: str) -> list[tuple[str, Any]]:
    """(name, value) of each network argument, in the order the form sends them."""
    kind = values["LoRA_type"]
    pairs = [(name, _value(name, kind, values)) for name in TYPES[kind].always]
    for name in TYPES[kind].given:
        value = _value(name, kind, values)
        if not unset(value) and _joins(name, kind, values, family):
            pairs.append((name, value))
    return pairs + [(name, values[name]) for name in LORAPLUS if not unset(values[name])]


def _value(name: str, kind: str, values: Mapping[str, Any]) -> Any:
    if name == "algo":
        return ALGOS[kind]
    if name == "train_blocks":
        return "single" if values["split_mode"] else ""
    return values[key_of(name)]


def _joins(name: str, kind: str, values: Mapping[str, Any], family: str) -> bool:
    if name == "conv_alpha" and kind in ("Kohya LoHa", "Kohya LoKr"):
        return not unset(values["conv_dim"]) and float(values["conv_dim"]) > 0
    if name == "factor":
        return kind == "Kohya LoKr" and values["factor"] != -1
    if name.startswith("ggpo"):
        return bool(values["train_lora_ggpo"])
    return family == "flux" if name == "train_t5xxl" else True


def words_of(pairs: Sequence[tuple[str, Any]]) -> list[str]:
    """name=value words; double quotes vanish and blanks split, as on Kohya's way to the trainer."""
    return " ".join(f"{name}={value}" for name, value in pairs).replace('"', "").split()


def as_mapping(words: Sequence[str]) -> dict[str, str]:
    """name -> text of network_args; numbers in one spelling, so that 4.0 and 4 are the same."""
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            number = float(value)
            value = str(int(number)) if number.is_integer() else repr(number)
        except (ValueError, OverflowError):
            pass
        found[name] = value
    return found


def telling(words: Sequence[str]) -> dict[str, str]:
    """`as_mapping` without arguments that change nothing."""
    return {name: value for name, value in as_mapping(words).items() if (name, value) not in IDLE}


def type_for(module: str, arguments: Mapping[str, str], family: str) -> str | None:
    """The LoRA_type that comes nearest to a module and its arguments, None where the form has none."""
    if module == "lycoris.kohya":
        algo = arguments.get("algo", "lora").lower()
        algo = {"lora": "locon", "oft": "diag-oft", "dora": "locon"}.get(algo, algo)
        return next((kind for kind, name in ALGOS.items() if name == algo), None)
    if module == "networks.lora" or (module == "networks.lora_sd3" and family == "sd3"):
        return "Kohya LoCon" if "conv_dim" in arguments else "Standard"
    return next((kind for kind, row in TYPES.items() if row.module == module), None)


def users_of(key: str) -> list[str]:
    """The LoRA types that look at a form key."""
    return [kind for kind, row in TYPES.items() if any(key_of(name) == key for name in (*row.always, *row.given))]
