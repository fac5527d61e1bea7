"""Known options that this trainer does not carry out, each with the reason: refused, or accepted without effect."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.config import TrainConfig, table
from schemas.problems import Problem
from schemas.rules.registry import rule

UNSUPPORTED: dict[str, str] = {
    "deepspeed": "DeepSpeed runs are not built in; for several GPUs use --processes",
    "dataset_class": "dataset classes of one's own are not built in; describe the data in a dataset_config",
    "debug_dataset": "`kohyakit plan` and `kohyakit dataset check --sheet` show what would be trained on",
    "cache_info": "sizes and captions are read anew at each start, so that they cannot be stale",
    "face_crop_aug_range": "face crops are not built in; crop the pictures beforehand",
    "huggingface_repo_id": "nothing is uploaded; upload the finished file with `hf upload`",
    "save_state_to_huggingface": "nothing is uploaded",
    "resume_from_huggingface": "states are resumed from a folder; download it first",
    "async_upload": "nothing is uploaded",
    "fused_backward_pass": "the reference only checks this option for LoRA and does not use it either",
    "cpu_offload_checkpointing": "checkpointed activations stay on the device; gradient_checkpointing alone works",
}

WITHOUT_EFFECT: dict[str, str] = {
    "tokenizer_cache_dir": "the tokenizers are built in",
    "mem_eff_attn": "PyTorch's own attention, which is used anyway, saves as much memory",
    "skip_until_initial_step": "data before initial_step is always skipped",
    "conditioning_data_dir": "mask folders are given in the subsets of a dataset_config",
    "huggingface_repo_type": "it matters only for uploads",
    "huggingface_path_in_repo": "it matters only for uploads",
    "huggingface_token": "it matters only for uploads",
    "huggingface_repo_visibility": "it matters only for uploads",
    "ddp_gradient_as_bucket_view": "gradients are shared in one transfer, without DistributedDataParallel's buckets",
    "ddp_static_graph": "gradients are shared in one transfer, without DistributedDataParallel",
    "zero_stage": "it matters only for DeepSpeed",
    "offload_optimizer_device": "it matters only for DeepSpeed",
    "offload_optimizer_nvme_path": "it matters only for DeepSpeed",
    "offload_param_device": "it matters only for DeepSpeed",
    "offload_param_nvme_path": "it matters only for DeepSpeed",
    "zero3_init_flag": "it matters only for DeepSpeed",
    "zero3_save_16bit_model": "it matters only for DeepSpeed",
    "fp16_master_weights_and_gradients": "it matters only for DeepSpeed",
}


@rule
def unsupported_options(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """An option that the trainer cannot carry out is refused, never dropped."""
    options = table()
    for name, reason in UNSUPPORTED.items():
        if getattr(config, name) != options[name].default:
            yield Problem(
                code="unsupported-option",
                key=name,
                got=getattr(config, name),
                must=f"is not supported: {reason}",
                fix="remove it, or train with --backend sd-scripts",
            )


@rule
def options_without_effect(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """An option that changes nothing here is named."""
    options = table()
    for name, reason in WITHOUT_EFFECT.items():
        value = getattr(config, name)
        if value != options[name].default:
            yield Problem(
                code="no-effect",
                severity="note",
                key=name,
                got="***" if options[name].secret else value,
                must=f"has no effect: {reason}",
            )
