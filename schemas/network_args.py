"""What each network_args key means: type, default, and which modules take it (reference sections 7.4 to 7.10)."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.rules.network import MODULES, NO_EFFECT


@dataclass(frozen=True)
class NetworkArg:
    """One key of network_args; `default` is what counts without it, as words."""

    meaning: str
    type: str
    default: str


NETWORK_ARGS: dict[str, NetworkArg] = {
    "conv_dim": NetworkArg(
        "Rank of the adapters on 3x3 convolutions (LoCon); without it they are not adapted.",
        "integer",
        "none; network_dim for LyCORIS",
    ),
    "conv_alpha": NetworkArg(
        "Scale of those adapters as conv_alpha / conv_dim.", "number", "1; network_alpha for LyCORIS"
    ),
    "dropout": NetworkArg(
        "Chance that an activation inside the adapter is dropped; goes before network_dropout.",
        "number",
        "network_dropout",
    ),
    "rank_dropout": NetworkArg("Chance that a whole rank channel is dropped for a picture.", "number", "none"),
    "module_dropout": NetworkArg("Chance that a module is skipped for a batch.", "number", "none"),
    "block_dims": NetworkArg(
        "Rank of each U-Net block: 25 numbers for SD, 23 for SDXL; 0 leaves a block out.",
        "numbers, by commas",
        "network_dim everywhere",
    ),
    "block_alphas": NetworkArg(
        "Alpha of each U-Net block, as many as block_dims.", "numbers, by commas", "network_alpha everywhere"
    ),
    "conv_block_dims": NetworkArg(
        "Rank on the 3x3 convolutions of each U-Net block.", "numbers, by commas", "conv_dim everywhere"
    ),
    "conv_block_alphas": NetworkArg(
        "Alpha on the 3x3 convolutions of each U-Net block.", "numbers, by commas", "conv_alpha everywhere"
    ),
    "down_lr_weight": NetworkArg(
        "Factor on the rate of each down block: 12 numbers (SDXL 9), or a shape such as sine+.5.",
        "numbers, by commas, or a shape",
        "1 everywhere",
    ),
    "mid_lr_weight": NetworkArg("Factor on the rate of the middle block (SDXL: three).", "numbers, by commas", "1"),
    "up_lr_weight": NetworkArg(
        "Factor on the rate of each up block, as down_lr_weight.", "numbers, by commas, or a shape", "1 everywhere"
    ),
    "block_lr_zero_threshold": NetworkArg("Blocks whose factor is not above this are not adapted.", "number", "0"),
    "loraplus_lr_ratio": NetworkArg(
        "LoRA+: the up half learns this many times faster (16 is usual).", "number", "none"
    ),
    "loraplus_unet_lr_ratio": NetworkArg(
        "The same for the U-Net only; goes before loraplus_lr_ratio.", "number", "loraplus_lr_ratio"
    ),
    "loraplus_text_encoder_lr_ratio": NetworkArg(
        "The same for the text encoders only; goes before loraplus_lr_ratio.", "number", "loraplus_lr_ratio"
    ),
    "unit": NetworkArg(
        "DyLoRA: ranks are trained in steps of this; network_dim must be a multiple of it.", "integer", "1"
    ),
    "enable_all_linear": NetworkArg(
        "OFT on all linear layers; any text counts as true.", "flag", "off: attention only"
    ),
    "enable_conv": NetworkArg("OFT on convolutions too; any text counts as true.", "flag", "off"),
    "algo": NetworkArg(
        "LyCORIS's algorithm: lora (locon), loha, lokr, dylora, glora, full, diag-oft, boft, ia3.", "name", "lora"
    ),
    "preset": NetworkArg(
        "Which layers LyCORIS adapts: full, full-lin, attn-mlp, attn-only, unet-only, ... or a TOML file.",
        "name or path",
        "full, convolutions included",
    ),
    "use_tucker": NetworkArg("Tucker decomposition of 3x3 convolutions.", "flag", "off"),
    "use_cp": NetworkArg("Old name of use_tucker; beside it, it decides.", "flag", "off"),
    "use_scalar": NetworkArg("A learned factor on each module.", "flag", "off"),
    "block_size": NetworkArg("Ranks trained together by LyCORIS's DyLoRA.", "integer", "4"),
    "factor": NetworkArg("LoKr: size of the small factor; -1 splits as evenly as it goes.", "integer", "-1"),
    "decompose_both": NetworkArg("LoKr: decompose the small factor too; any text is yes, False too.", "flag", "off"),
    "train_norm": NetworkArg("Train normalisation layers too.", "flag", "off"),
    "constraint": NetworkArg("OFT: largest size of the rotation.", "number", "0, none"),
    "rescaled": NetworkArg("OFT: a learned scale on each module.", "flag", "off"),
    "dora_wd": NetworkArg(
        "DoRA: learn the weights' length apart from their direction (Liu et al. 2024).", "flag", "off"
    ),
    "wd_on_output": NetworkArg("DoRA: take the length over the output side.", "flag", "on since LyCORIS 3.2"),
    "full_matrix": NetworkArg("LoKr: keep the large factor whole, whatever the rank.", "flag", "off"),
    "bypass_mode": NetworkArg("Run the adapter beside the layer instead of adding it to the weight.", "flag", "off"),
    "rs_lora": NetworkArg("Scale by alpha / sqrt(rank) instead of alpha / rank (Kalajdzievski 2023).", "flag", "off"),
    "unbalanced_factorization": NetworkArg("LoKr: let the factors be of unlike size.", "flag", "off"),
    "rank_dropout_scale": NetworkArg("Does nothing: LyCORIS does not pass it on.", "flag", "off"),
    "train_on_input": NetworkArg("Does nothing: LyCORIS does not pass it on.", "flag", "off"),
}


def modules_with(name: str) -> list[str]:
    """The network modules that take the key and do something with it."""
    return [module for module, names in MODULES.items() if name in names and name not in NO_EFFECT.get(module, ())]
