"""What other trainers keep in a LoRA's header, as sd-scripts arguments.

OneTrainer: `ot_config`; ai-toolkit: `software`, `training_info`; SimpleTuner: `lycoris_config`; diffusers and peft:
`lora_adapter_metadata`, or adapter_config.json beside the file; all of them: modelspec.* (Stability's model spec 1.0).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from schemas.files.documents import object_in, parse_json

Found = tuple[str, Any, str]  # argument, value, key of the header

MODELSPEC = {
    "title": "metadata_title", "author": "metadata_author", "description": "metadata_description",
    "license": "metadata_license", "tags": "metadata_tags", "usage_hint": "metadata_usage_hint",
    "merged_from": "metadata_merged_from", "trigger_phrase": "metadata_trigger_phrase",
    "preprocessor": "metadata_preprocessor", "is_negative_embedding": "metadata_is_negative_embedding",
    "encoder_layer": "clip_skip",
}  # fmt: skip
ONE_TRAINER = {
    "lora_rank": "network_dim", "lora_alpha": "network_alpha", "base_model_name": "pretrained_model_name_or_path",
    "epochs": "max_train_epochs", "batch_size": "train_batch_size", "seed": "seed",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "learning_rate": "learning_rate",
    "learning_rate_cycles": "lr_scheduler_num_cycles", "clip_grad_norm": "max_grad_norm", "resolution": "resolution",
    "offset_noise_weight": "noise_offset", "perturbation_noise_weight": "ip_noise_gamma",
    "rescale_noise_scheduler_to_zero_terminal_snr": "zero_terminal_snr", "force_v_prediction": "v_parameterization",
    "masked_training": "masked_loss", "latent_caching": "cache_latents", "aspect_ratio_bucketing": "enable_bucket",
    "dropout_probability": "network_dropout",
}  # fmt: skip
UNSET_WHEN_ZERO = ("offset_noise_weight", "perturbation_noise_weight", "dropout_probability", "clip_grad_norm")
SCHEDULERS = {
    "CONSTANT": "constant", "LINEAR": "linear", "COSINE": "cosine", "COSINE_WITH_RESTARTS": "cosine_with_restarts",
    "COSINE_WITH_HARD_RESTARTS": "cosine_with_restarts",
}  # fmt: skip
OPTIMIZERS = {
    "ADAMW": "AdamW", "ADAMW_8BIT": "AdamW8bit", "LION": "Lion", "LION_8BIT": "Lion8bit", "PRODIGY": "Prodigy",
    "ADAFACTOR": "AdaFactor", "DADAPT_ADAM": "DAdaptAdam", "DADAPT_LION": "DAdaptLion", "DADAPT_SGD": "DAdaptSGD",
    "DADAPT_ADA_GRAD": "DAdaptAdaGrad", "DADAPT_ADAN": "DAdaptAdan", "ADAM": "Adam", "SGD": "SGD", "RMSPROP": "RMSprop",
    "SCHEDULE_FREE_ADAMW": "AdamWScheduleFree", "SCHEDULE_FREE_SGD": "SGDScheduleFree", "NADAM": "NAdam",
}  # fmt: skip
OPTIMIZER_ARGS = (
    "weight_decay", "decouple", "d_coef", "d0", "use_bias_correction", "safeguard_warmup", "relative_step",
    "scale_parameter", "warmup_init", "eps", "momentum", "nesterov",
)  # fmt: skip
DTYPES = {"BFLOAT_16": "bf16", "FLOAT_16": "fp16", "FLOAT_32": "no"}
SAVED = {"BFLOAT_16": "bf16", "FLOAT_16": "fp16", "FLOAT_32": "float"}
LYCORIS = {"linear_dim": "network_dim", "linear_alpha": "network_alpha"}
LYCORIS_ARGS = (
    "algo", "conv_dim", "conv_alpha", "factor", "use_tucker", "decompose_both", "full_matrix", "dora_wd", "block_size",
    "constraint", "rescaled", "use_scalar", "train_norm", "bypass_mode", "rs_lora", "unbalanced_factorization",
    "dropout", "rank_dropout", "module_dropout",
)  # fmt: skip
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "")


def facts(metadata: Mapping[str, str], file: str) -> Iterator[Found]:
    """Every argument that another trainer's header states; of several statements the first counts."""
    yield from _one_trainer(_mapping(metadata.get("ot_config")))
    yield from _lycoris(_mapping(metadata.get("lycoris_config")))
    yield from _peft(_mapping(metadata.get("lora_adapter_metadata")), "lora_adapter_metadata")
    yield from _peft(_beside(file), "adapter_config.json")
    steps = _mapping(metadata.get("training_info")).get("step")
    if isinstance(steps, int) and steps > 0:
        yield "max_train_steps", steps, "training_info"
    yield from _modelspec(metadata)


def trainer_of(metadata: Mapping[str, str]) -> str | None:
    """The program that wrote the header, as far as it says."""
    software = _mapping(metadata.get("software")).get("name") or metadata.get("software")
    if "ot_config" in metadata or "ot_revision" in metadata:
        return "OneTrainer"
    if "kohyakit_config" in metadata:
        return "kohyakit"
    if "lycoris_config" in metadata:
        return "SimpleTuner"
    if software:
        return str(software)
    if any(key.startswith("ss_") for key in metadata):
        return "sd-scripts"
    return "diffusers" if "lora_adapter_metadata" in metadata else None


def _mapping(text: str | None) -> Mapping[str, Any]:
    try:
        found = parse_json(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, Mapping) else {}


def _beside(file: str) -> Mapping[str, Any]:
    path = Path(file).with_name("adapter_config.json")
    return object_in(path, what="adapter config", limit=2**20)


def _one_trainer(config: Mapping[str, Any]) -> Iterator[Found]:
    key = "ot_config"
    for name, argument in ONE_TRAINER.items():
        value = config.get(name)
        if value not in (None, "") and not (name in UNSET_WHEN_ZERO and not value):
            yield argument, str(value).replace("x", ",") if name == "resolution" else value, key
    for name, words, argument in (
        ("learning_rate_scheduler", SCHEDULERS, "lr_scheduler"),
        ("train_dtype", DTYPES, "mixed_precision"),
        ("output_dtype", SAVED, "save_precision"),
    ):
        if config.get(name) in words:
            yield argument, words[config[name]], key
    if config.get("gradient_checkpointing") in (True, "ON", "CPU_OFFLOADED"):
        yield "gradient_checkpointing", True, key
    if config.get("learning_rate_scheduler") not in ("CONSTANT", "ADAFACTOR", None):
        yield "lr_warmup_steps", config.get("learning_rate_warmup_steps") or 0, key
    yield from _one_trainer_parts(config, key)
    yield from _one_trainer_optimizer(config.get("optimizer"), key)
    strength = config.get("loss_weight_strength")
    if config.get("loss_weight_fn") == "MIN_SNR_GAMMA" and strength:
        yield "min_snr_gamma", strength, key
    elif config.get("loss_weight_fn") == "DEBIASED_ESTIMATION":
        yield "debiased_estimation_loss", True, key


def _one_trainer_parts(config: Mapping[str, Any], key: str) -> Iterator[Found]:
    parts = {name: config[name] for name in ("unet", "text_encoder", "text_encoder_2") if _is_mapping(config.get(name))}
    texts = [part for name, part in parts.items() if name != "unet"]
    rate = parts.get("unet", {}).get("learning_rate")
    if rate:
        yield "unet_lr", rate, key
    rates = [part["learning_rate"] for part in texts if part.get("train") and part.get("learning_rate")]
    if rates:
        yield "text_encoder_lr", rates, key
    if texts and not any(part.get("train") for part in texts):
        yield "network_train_unet_only", True, key
    kind = {"LOHA": "algo=loha", "OFT": "algo=diag-oft", "OFT_2": "algo=diag-oft"}.get(str(config.get("peft_type")))
    if kind:
        yield "network_module", "lycoris.kohya", key
    if config.get("lora_decompose") is True:
        yield "network_module", "lycoris.kohya", key
        kind = kind or "algo=lora"
    if kind:
        yield "network_args", [kind, *(["dora_wd=True"] if config.get("lora_decompose") is True else [])], key


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _one_trainer_optimizer(optimizer: Any, key: str) -> Iterator[Found]:
    given: Mapping[str, Any] = optimizer if isinstance(optimizer, Mapping) else {"optimizer": optimizer}
    name = OPTIMIZERS.get(str(given.get("optimizer")))
    if not name:
        return
    yield "optimizer_type", name, key
    words = [f"{word}={given[word]}" for word in OPTIMIZER_ARGS if isinstance(given.get(word), (bool, int, float))]
    betas = [given.get(f"beta{number}") for number in (1, 2)]
    if all(isinstance(beta, float) for beta in betas):
        words.append(f"betas=({betas[0]},{betas[1]})")
    if words:
        yield "optimizer_args", words, key


def _lycoris(config: Mapping[str, Any]) -> Iterator[Found]:
    if not config:
        return
    key = "lycoris_config"
    yield "network_module", "lycoris.kohya", key
    for name, argument in LYCORIS.items():
        if config.get(name) is not None:
            yield argument, config[name], key
    yield "network_args", [f"{name}={config[name]}" for name in LYCORIS_ARGS if config.get(name) is not None], key


def _peft(config: Mapping[str, Any], key: str) -> Iterator[Found]:
    """A peft LoraConfig, whose keys diffusers prefixes by the part of the model."""
    for part in PARTS:
        start = f"{part}." if part else ""
        rank = config.get(f"{start}r")
        if not isinstance(rank, int):
            continue
        alpha = config.get(f"{start}lora_alpha") or rank
        stabilised = config.get(f"{start}use_rslora") is True  # scales by alpha / sqrt(rank)
        yield "network_dim", rank, key
        yield "network_alpha", float(alpha) * (math.sqrt(rank) if stabilised else 1.0), key
        if config.get(f"{start}lora_dropout"):
            yield "network_dropout", config[f"{start}lora_dropout"], key
        if config.get(f"{start}use_dora") is True:
            yield "network_module", "lycoris.kohya", key
            yield "network_args", ["algo=lora", "dora_wd=True"], key
        break
    model = config.get("base_model_name_or_path")
    if isinstance(model, str) and model:
        yield "pretrained_model_name_or_path", model, key


def _modelspec(metadata: Mapping[str, str]) -> Iterator[Found]:
    for name, argument in MODELSPEC.items():
        text = metadata.get(f"modelspec.{name}", "")
        made_up = name == "title" and (text == metadata.get("ss_output_name") or text.startswith("LoRA@"))
        if text and not made_up:
            yield argument, text, f"modelspec.{name}"
    size = metadata.get("modelspec.resolution", "")
    if size and "ss_datasets" not in metadata:  # sd-scripts writes its default there when a dataset_config has the size
        yield "resolution", size.replace("x", ","), "modelspec.resolution"
    if metadata.get("modelspec.prediction_type") == "v":
        yield "v_parameterization", True, "modelspec.prediction_type"
    low, comma, high = metadata.get("modelspec.timestep_range", "").partition(",")
    if comma:
        yield "min_timestep", low, "modelspec.timestep_range"
        yield "max_timestep", high, "modelspec.timestep_range"
