"""Known options that this trainer does not carry out, each with the reason: refused, or accepted without effect."""

from __future__ import annotations

from collections.abc import Iterator

from schemas.config import TrainConfig, table
from schemas.families import facts_of
from schemas.problems import Problem
from schemas.rules.registry import rule

UNSUPPORTED: dict[str, str] = {
    "deepspeed": "what ZeRO shares out, a LoRA's gradients and optimizer states, is too small to save memory on; for "
    "several GPUs use --processes",
    "dataset_class": "such a class hands over whole batches in the reference's own inner form, which is not published; "
    "describe the data in a dataset_config",
}

WITHOUT_EFFECT: dict[str, str] = {
    "cache_info": "sizes and captions are read anew at each start, so that they are never out of date",
    "tokenizer_cache_dir": "the tokenizers are built in",
    "mem_eff_attn": "PyTorch's own attention, which is used anyway, saves as much memory",
    "skip_until_initial_step": "data before initial_step is always skipped",
    "conditioning_data_dir": "mask folders are given in the subsets of a dataset_config",
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
    options, facts = table(), facts_of(family)
    for name, reason in {**UNSUPPORTED, **(facts.lacks if facts else {})}.items():
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
    options, facts = table(), facts_of(family)
    ignored = facts.ignores if facts else {}
    for name, reason in {**WITHOUT_EFFECT, **ignored}.items():
        value = getattr(config, name)
        if value != options[name].default:
            yield Problem(
                code="no-effect",
                severity="warning" if name in ignored else "note",  # a family's are about what is learnt
                key=name,
                got="***" if options[name].secret else value,
                must=f"has no effect: {reason}",
            )


@rule
def options_in_vain(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Saving memory by stepping or moving things early needs settings that allow it; without them nothing changes."""
    needs: list[tuple[str, str]] = []
    if config.fused_backward_pass and config.max_grad_norm:
        needs.append(("fused_backward_pass", "max_grad_norm 0: the norm is only known when all gradients are there"))
    elif config.fused_backward_pass and config.mixed_precision == "fp16":
        needs.append(
            ("fused_backward_pass", "another mixed_precision than fp16, whose gradients are checked as a whole")
        )
    if config.cpu_offload_checkpointing and not config.gradient_checkpointing:
        needs.append(("cpu_offload_checkpointing", "gradient_checkpointing, whose activations it moves"))
    for name, wanted in needs:
        yield Problem(code="no-effect", severity="note", key=name, got=True, must=f"has no effect: it needs {wanted}")
