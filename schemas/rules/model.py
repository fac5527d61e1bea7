"""Rules on what a run cannot do without, on the base model, its number formats, noise and loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from schemas.config import TrainConfig
from schemas.files.weights import PICKLES
from schemas.problems import Problem
from schemas.rules.registry import rule

FAMILIES = ("sd15", "sd2", "sdxl")


@rule
def required_options(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Model, data, resolution and output folder are needed; the reference notices only when it uses them (traps T1)."""
    if not config.pretrained_model_name_or_path:
        yield Problem(
            code="missing-option",
            key="pretrained_model_name_or_path",
            must="must name the base model",
            fix="--set pretrained_model_name_or_path=MODEL.safetensors",
        )
    if not config.output_dir:
        yield Problem(
            code="missing-option",
            key="output_dir",
            must="must name the folder for the results",
            fix="--set output_dir=FOLDER",
        )
    if not (config.train_data_dir or config.dataset_config or config.in_json or config.dataset_class):
        yield Problem(
            code="missing-option",
            key="train_data_dir",
            must="must name the images: the folder that holds the REPEATS_NAME folders, or a dataset_config",
            fix="--set train_data_dir=FOLDER",
        )
    if not config.resolution and not config.dataset_config:
        yield Problem(
            code="missing-option",
            key="resolution",
            must="must be given",
            fix=f"--set resolution={1024 if family == 'sdxl' else 512}",
        )
    if not config.output_name:
        yield Problem(
            code="missing-name",
            severity="note",
            key="output_name",
            must="is not given; files are named last, epoch and at",
            fix="--set output_name=NAME",
        )


@rule
def text_projection_of_a_file(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """sdxl_text_projection is a matter of SDXL's single files: a diffusers folder keeps a Linear's weight."""
    if config.sdxl_text_projection == "as_stored" and (
        family in ("sd15", "sd2") or (config.pretrained_model_name_or_path and not is_single_file(config))
    ):
        must = "has no effect: only a single file of SDXL has a text_projection that can be read in two ways"
        yield Problem(code="no-effect", severity="warning", key="sdxl_text_projection", got="as_stored", must=must,
                      fix="--set sdxl_text_projection=transposed")  # fmt: skip


def is_single_file(config: TrainConfig) -> bool:
    """Whether the base model is named as a checkpoint's file."""
    return (config.pretrained_model_name_or_path or "").lower().endswith((".safetensors", *PICKLES))


def text_projection_of_sdxl(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """How a plan for SDXL says which of the two readings counts: single files store the matrix turned round."""
    if family == "sdxl" and is_single_file(config):
        must = "the base model's text_projection is read transposed, as image programs do; Kohya takes it as stored"
        fix: str | None = "--set sdxl_text_projection=as_stored to train on as Kohya would"
        code = "text-projection"
        if config.sdxl_text_projection == "as_stored":
            code += "-as-stored"
            must, fix = "the base model's text_projection is read as Kohya does; image programs transpose it", None
        yield Problem(code=code, severity="note", key="sdxl_text_projection",
                      got=config.sdxl_text_projection, must=must, fix=fix)  # fmt: skip


@rule
def trainable_family(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """The base model is SD 1.x, SD 2.x or SDXL, and v2 says the same as the checkpoint."""
    if family in (None, "unknown"):
        return
    if family not in FAMILIES:
        yield Problem(
            code="unsupported-family",
            key="pretrained_model_name_or_path",
            got=family,
            must=f"is not a base model that can be trained here ({', '.join(FAMILIES)})",
            fix="choose an SD 1.5 or SDXL checkpoint",
        )
    elif config.v2 and family != "sd2":
        yield Problem(
            code="family-mismatch",
            key="v2",
            got=True,
            must=f"means Stable Diffusion 2.x, the checkpoint is {family}",
            fix="--set v2=false",
        )
    elif family == "sd2" and not config.v2:
        yield Problem(
            code="family-mismatch",
            key="v2",
            got=False,
            must="means not Stable Diffusion 2.x, the checkpoint is sd2",
            fix="--set v2=true",
        )


@rule
def clip_skip_range(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """clip_skip counts from 1 up to the number of layers (traps T26); SDXL ignores it."""
    if config.clip_skip is None:
        return
    layers = 24 if family == "sd2" or config.v2 else 12
    if family == "sdxl":
        if config.clip_skip not in (0, 2):
            yield Problem(
                code="no-effect",
                severity="warning",
                key="clip_skip",
                got=config.clip_skip,
                must="has no effect for SDXL, whose text encoders always use the last layer but one",
            )
    elif not 1 <= config.clip_skip <= layers:
        yield Problem(
            code="clip-skip-range",
            key="clip_skip",
            got=config.clip_skip,
            must=f"must be 1 to {layers}; 1 is the last layer",
            fix="--set clip_skip=1",
        )
    elif config.v2:
        yield Problem(
            code="clip-skip-v2",
            severity="warning",
            key="clip_skip",
            got=config.clip_skip,
            must="SD 2.x is made for its own last layer but one; clip_skip is unusual",
        )


@rule
def velocity_prediction(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Options that exist only with, or only without, v-parameterization."""
    if config.scale_v_pred_loss_like_noise_pred and not config.v_parameterization:
        yield Problem(
            code="needs-v-parameterization",
            key="scale_v_pred_loss_like_noise_pred",
            got=True,
            must="needs v_parameterization",
            fix="remove it, or --set v_parameterization=true for a v-prediction model",
        )
    if config.v_pred_like_loss and config.v_parameterization:
        yield Problem(
            code="excludes-v-parameterization",
            key="v_pred_like_loss",
            got=config.v_pred_like_loss,
            must="excludes v_parameterization",
            fix="remove v_pred_like_loss",
        )
    if config.zero_terminal_snr and not config.v_parameterization:
        yield Problem(
            code="zero-snr-without-v",
            severity="warning",
            key="zero_terminal_snr",
            got=True,
            must="is meant for v_parameterization; noise prediction cannot learn the last step",
        )
    weights = ("min_snr_gamma", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss", "debiased_estimation_loss")
    weighted = [name for name in weights if getattr(config, name)]
    if config.zero_terminal_snr and weighted:
        yield Problem(
            code="snr-before-rescaling",
            severity="note",
            key="zero_terminal_snr",
            got=True,
            must=f"does not reach {weighted[0]}: loss weights keep the ratios of the plain schedule, as in Kohya",
        )


@rule
def number_formats(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """full_fp16 and full_bf16 need the same mixed_precision, fp8 needs any."""
    for name, wanted in (("full_fp16", "fp16"), ("full_bf16", "bf16")):
        if getattr(config, name) and config.mixed_precision != wanted:
            yield Problem(
                code="precision-mismatch",
                key=name,
                got=config.mixed_precision,
                must=f"needs mixed_precision {wanted}",
                fix=f"--set mixed_precision={wanted}, or remove {name}",
            )
    for name in ("fp8_base", "fp8_base_unet"):
        if getattr(config, name) and config.mixed_precision == "no":
            yield Problem(
                code="precision-mismatch",
                key=name,
                got="no",
                must="needs mixed_precision fp16 or bf16",
                fix="--set mixed_precision=bf16",
            )


@rule
def noise_and_timesteps(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """0 <= min_timestep < max_timestep <= 1000 (traps T61); adaptive_noise_scale needs noise_offset."""
    low, high = config.min_timestep or 0, 1000 if config.max_timestep is None else config.max_timestep
    if low >= high:
        yield Problem(
            code="timestep-range",
            key="min_timestep",
            got=low,
            must=f"must be below max_timestep ({high})",
            fix="--set min_timestep=0 --set max_timestep=1000",
        )
    if config.adaptive_noise_scale is not None and config.noise_offset is None:
        yield Problem(
            code="needs-noise-offset",
            key="adaptive_noise_scale",
            got=config.adaptive_noise_scale,
            must="needs noise_offset",
            fix="--set noise_offset=0.05, or remove it",
        )
    for name, base in (
        ("adaptive_noise_scale", "noise_offset"),
        ("noise_offset_random_strength", "noise_offset"),
        ("ip_noise_gamma_random_strength", "ip_noise_gamma"),
    ):
        value = getattr(config, name)
        if value and not getattr(config, base):
            yield Problem(code="no-effect", severity="note", key=name, got=value, must=f"has no effect without {base}")


@rule
def huber_threshold(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """A Huber threshold of 0 leaves no loss; with the schedule snr the reference does not use huber_scale (T45)."""
    used = {"snr": ("huber_c",)}.get(config.huber_schedule, ("huber_c", "huber_scale"))
    for name in used if config.loss_type in ("huber", "smooth_l1") else ():
        if not getattr(config, name):
            yield Problem(
                code="no-threshold",
                key=name,
                got=getattr(config, name),
                must=f"must be above 0 for loss_type {config.loss_type}",
                fix=f"--set {name}={0.1 if name == 'huber_c' else 1}",
            )
    if config.huber_scale != 1.0 and config.loss_type in ("huber", "smooth_l1") and config.huber_schedule == "snr":
        yield Problem(
            code="no-effect",
            severity="warning",
            key="huber_scale",
            got=config.huber_scale,
            must="has no effect with huber_schedule snr",
            fix="--set huber_schedule=constant",
        )


@rule
def one_attention(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Of several attention options the first of mem_eff_attn, xformers, sdpa counts."""
    given = [name for name in ("mem_eff_attn", "xformers", "sdpa") if getattr(config, name)]
    for name in given[1:]:
        yield Problem(
            code="no-effect", severity="note", key=name, got=True, must=f"has no effect: {given[0]} goes first"
        )


@rule
def logging_options(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """TensorBoard needs logging_dir; each tracker needs its package."""
    trackers = {"all": ("tensorboard", "wandb")}.get(
        config.log_with or "", (config.log_with,) if config.log_with else ()
    )
    if not trackers and config.logging_dir:
        trackers = ("tensorboard",)
    if "tensorboard" in trackers and not config.logging_dir:
        yield Problem(
            code="missing-option",
            key="logging_dir",
            must=f"must be given for log_with {config.log_with}",
            fix="--set logging_dir=FOLDER, or --set log_with= to go without",
        )
    for package in trackers:
        if importlib.util.find_spec(package) is None:
            yield Problem(
                code="missing-package",
                key="log_with",
                got=config.log_with,
                must=f"needs the package {package}, which is not installed",
                fix=f"pip install {package}",
            )
