"""The option table: one frozen dataclass a group, one field an option, under its sd-scripts name and default.

Everything else about options is derived from here: the trainer's parser, type checks, JSON Schemas, the docs page, the
`ss_*` metadata and the snapshot. Adding an option is adding one field. Facts: the reference's argument table (196 names).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def opt(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    secret: bool = False,
    path: bool = False,
    name_of_files: bool = False,
    resume: bool = False,
    only: Literal["caches_text", "text_projection"] | None = None,
    ratio: bool = False,
    kit: bool = False,
    instead: Any = None,
) -> Any:
    """One option: default, one sentence, closed or open bounds.

    `secret` values are never printed or written; `path` values name a file or folder, and files are named after `name_of_files`;
    `resume` options may change when a run is resumed; `only` ones exist for families with that trait in their row; `ratio` takes a whole number, or a share up to 1.0; `kit` ones are not the reference's;
    `instead` is the value to advise for a refused one where neither the default nor the bound makes a run.
    """
    facts = {"ge": ge, "gt": gt, "le": le}
    marks = {"secret": secret, "path": path, "name_of_files": name_of_files, "resume": resume, "only": only, "ratio": ratio, "kit": kit, "instead": instead}
    given = {name: value for name, value in {**facts, **marks}.items() if value is not None and value is not False}
    return field(default=default, metadata={"doc": doc, **given})


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Base model and how text reaches it."""

    v2: bool = opt(False, "The base model is Stable Diffusion 2.x.")
    v_parameterization: bool = opt(False, "The base model predicts v (velocity) instead of noise.")
    pretrained_model_name_or_path: str | None = opt(None, "Base model: a single-file checkpoint, a diffusers folder, or a hub id.", path=True)
    tokenizer_cache_dir: str | None = opt(None, "Folder of tokenizer copies; the CLIP tokenizers are built in, so SD1.5 and SDXL do not need it.", path=True)
    max_token_length: Literal[150, 225] | None = opt(None, "Longest caption in tokens: unset is 75, else 150 or 225.")
    vae: str | None = opt(None, "VAE to use instead of the base model's own.", path=True)
    clip_skip: int | None = opt(None, "Take the text encoder's output n layers before the end; 1 is the last.", ge=0, le=24)
    sdxl_text_projection: Literal["transposed", "as_stored"] = opt("transposed", "How a single file's OpenCLIP text_projection is read: transposed, as image programs do, or as_stored, as sd-scripts does.", kit=True, only="text_projection")
    disable_mmap_load_safetensors: bool = opt(False, "Read the checkpoint whole instead of mapping it.", resume=True)


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The adapter that is trained."""

    network_weights: str | None = opt(None, "LoRA file to start from.", path=True)
    network_module: str | None = opt(None, "Kind of adapter, by its module name.")
    network_dim: int | None = opt(None, "Rank of the adapter; unset is 4.", ge=1)
    network_alpha: float = opt(1.0, "Scale of the adapter as alpha / rank; 0 means the rank.", ge=0)
    network_dropout: float | None = opt(None, "Chance that an activation inside the adapter is dropped.", ge=0, le=1)
    network_args: tuple[str, ...] = opt((), "Further settings of the adapter, each name=value.")
    network_train_unet_only: bool = opt(False, "Train the U-Net's adapter only.")
    network_train_text_encoder_only: bool = opt(False, "Train the text encoders' adapters only.")
    dim_from_weights: bool = opt(False, "Take rank and alpha from network_weights.")
    scale_weight_norms: float | None = opt(None, "Largest norm of an adapter's weights; larger ones are scaled down, 0 leaves them.", ge=0)
    stop_text_encoder_training: int | float = opt(0, "Step after which the text encoders learn no more; a decimal up to 1.0 is a share of the run, 0 is never.", ge=-1, ratio=True, kit=True)
    ema_decay: float | None = opt(None, "Keep a moving average of the LoRA's weights and save it beside them as NAME.ema.safetensors; 0.999 is usual.", ge=0, le=0.999999, kit=True)
    base_weights: tuple[str, ...] = opt((), "LoRA files merged into the base model before training.", path=True)
    base_weights_multiplier: tuple[float, ...] = opt((), "Strength of each of those files.")

    @property
    def rank(self) -> int:
        """Rank of the adapter, the reference's where it is not given."""
        return self.network_dim or 4

    @property
    def adapter(self) -> str:
        """The module that makes the adapter, the usual LoRA where none is named."""
        return self.network_module or "networks.lora"


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """Optimizer, rates and length of the run."""

    max_train_steps: int = opt(1600, "Length of the run in optimizer steps.", ge=0, resume=True, instead=1600)
    max_train_epochs: int | None = opt(None, "Length of the run in epochs; overrides max_train_steps.", ge=1, resume=True)
    seed: int | None = opt(None, "Seed of everything random; drawn and recorded if unset.", ge=0, le=4294967295)
    gradient_accumulation_steps: int = opt(1, "Batches summed up into one step.", ge=1)
    optimizer_type: str = opt("", "Optimizer by name; empty is AdamW.")
    learning_rate: float = opt(2e-06, "Learning rate where unet_lr or text_encoder_lr is not given.", ge=0, le=1000)
    max_grad_norm: float = opt(1.0, "Longest gradient; longer ones are shortened to it, 0 leaves them.", ge=0)
    optimizer_args: tuple[str, ...] = opt((), "Further arguments of the optimizer, each name=value.")
    fused_backward_pass: bool = opt(False, "Step each parameter as its gradient arrives; Adafactor only.")
    unet_lr: float | None = opt(None, "Learning rate of the U-Net's adapter.", ge=0, le=1000)
    text_encoder_lr: tuple[float, ...] = opt((), "Learning rate of the text encoders' adapters, one number or one for each encoder.", ge=0, le=1000)


@dataclass(frozen=True, kw_only=True)
class SchedulerOptions:
    """Learning-rate schedule."""

    lr_scheduler_type: str = opt("", "A scheduler class of torch, or a dotted name that needs trust.")
    lr_scheduler_args: tuple[str, ...] = opt((), "Further arguments of the scheduler, each name=value.")
    lr_scheduler: str = opt("constant", "Shape of the learning-rate curve.")
    lr_warmup_steps: int | float = opt(0, "Steps of rising rate; a decimal up to 1.0 is a share of the run.", ge=0, ratio=True)
    lr_decay_steps: int | float = opt(0, "Steps of falling rate at the end (warmup_stable_decay); a decimal up to 1.0 is a share.", ge=0, ratio=True)
    lr_scheduler_num_cycles: int = opt(1, "Restarts of cosine_with_restarts.", ge=0)
    lr_scheduler_power: float = opt(1.0, "Power of the polynomial schedule.")
    lr_scheduler_timescale: int | None = opt(None, "Time scale of the inverse_sqrt schedule.")
    lr_scheduler_min_lr_ratio: float | None = opt(None, "Lowest rate as a share of the highest.", ge=0, le=1)


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """What the prediction is compared with, and how it is weighted."""

    loss_type: Literal["l1", "l2", "huber", "smooth_l1"] = opt("l2", "How prediction and target are compared.")
    huber_schedule: Literal["constant", "exponential", "snr"] = opt("snr", "How the Huber threshold depends on the noise level.")
    huber_c: float = opt(0.1, "Huber threshold.", ge=0)
    huber_scale: float = opt(1.0, "Factor on the Huber threshold.", ge=0)
    prior_loss_weight: float = opt(1.0, "Weight of regularisation pictures in the loss.", ge=0)
    masked_loss: bool = opt(False, "Weight the loss by a mask.")
    min_snr_gamma: float | None = opt(None, "Min-SNR loss weighting (Hang et al. 2023); 5 is usual.", ge=0)
    scale_v_pred_loss_like_noise_pred: bool = opt(False, "Weight the v loss as if noise were predicted.")
    v_pred_like_loss: float | None = opt(None, "Share of v-like loss added to noise prediction.")
    debiased_estimation_loss: bool = opt(False, "Debiased estimation weighting (Yu et al. 2023).")


@dataclass(frozen=True, kw_only=True)
class NoiseOptions:
    """Noise and timesteps."""

    noise_offset: float | None = opt(None, "Strength of a constant offset added to the noise of each channel.")
    noise_offset_random_strength: bool = opt(False, "Draw that strength between 0 and the given value.")
    multires_noise_iterations: int | None = opt(None, "Levels of coarser noise added (pyramid noise).", ge=0)
    ip_noise_gamma: float | None = opt(None, "Strength of extra noise on the input only (input perturbation).")
    ip_noise_gamma_random_strength: bool = opt(False, "Draw that strength between 0 and the given value.")
    multires_noise_discount: float = opt(0.3, "Strength of each coarser level against the one before.", ge=0)
    adaptive_noise_scale: float | None = opt(None, "Add this times the latents' mean to noise_offset.")
    zero_terminal_snr: bool = opt(False, "Rescale the noise schedule so that its last step is pure noise.")
    min_timestep: int | None = opt(None, "First noise level trained, of 1000.", ge=0, le=999)
    max_timestep: int | None = opt(None, "End of the noise levels trained, not included.", ge=1, le=1000)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which pictures, how they are cut, and validation."""

    train_data_dir: str | None = opt(None, "Parent folder of the picture folders, each named REPEATS_NAME.", path=True)
    cache_info: bool = opt(False, "Keep picture sizes and captions in metadata_cache.json beside the pictures.")
    color_aug: bool = opt(False, "Vary hue or gamma a little; excludes cached latents.")
    flip_aug: bool = opt(False, "Mirror each picture half of the time.")
    face_crop_aug_range: str | None = opt(None, "Crop around the face given in the file name, scaled by two numbers such as 2.0,4.0.")
    random_crop: bool = opt(False, "Cut at a random place instead of the centre; excludes cached latents.")
    debug_dataset: bool = opt(False, "Show what would be trained on, then stop.")
    resolution: str | None = opt(None, "Training size: one number, or width,height.", instead="512,512")
    resize_interpolation: Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"] | None = opt(None, "Filter for resizing; by default area to shrink, Lanczos to enlarge.")
    alpha_mask: bool = opt(False, "Use the pictures' transparency as loss mask.")
    dataset_class: str | None = opt(None, "Dotted name of a dataset class of your own; needs trust.")
    reg_data_dir: str | None = opt(None, "Parent folder of regularisation pictures, named like the training folders.", path=True)
    in_json: str | None = opt(None, "Metadata JSON with captions, instead of caption files.", path=True)
    dataset_repeats: int = opt(1, "Repeats of each picture in metadata mode.", ge=1)
    train_batch_size: int = opt(1, "Pictures in one step of one process.", ge=1)
    max_data_loader_n_workers: int = opt(8, "Processes that prepare data; 0 prepares in the trainer itself.", ge=0, resume=True)
    persistent_data_loader_workers: bool = opt(False, "Keep those processes between epochs.", resume=True)
    conditioning_data_dir: str | None = opt(None, "Folder of mask pictures for masked loss.", path=True)
    dataset_config: str | None = opt(None, "TOML or JSON that describes the datasets.", path=True)
    validation_seed: int | None = opt(None, "Seed of the split into training and validation; the run's seed if unset.", ge=0)
    validation_split: float = opt(0.0, "Share of the pictures kept aside for validation.", ge=0, le=1, instead=0.1)
    validate_every_n_steps: int | None = opt(None, "Validate every n steps.", ge=0, resume=True)
    validate_every_n_epochs: int | None = opt(None, "Validate every n epochs.", ge=0, resume=True)
    max_validation_steps: int | None = opt(None, "Most batches in one validation.", ge=0, resume=True)


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """From caption file to trained text."""

    shuffle_caption: bool = opt(False, "Shuffle the caption's tags each time it is drawn.")
    caption_separator: str = opt(",", "What stands between two tags.")
    caption_extension: str = opt(".caption", "Extension of caption files.")
    keep_tokens: int = opt(0, "Number of leading tags that shuffling and tag dropout leave alone.", ge=0)
    keep_tokens_separator: str = opt("", "Text that divides the fixed head (and tail) of a caption from the tags between.")
    secondary_separator: str | None = opt(None, "Text that becomes the separator after shuffling, so that tags joined by it stay together.")
    enable_wildcard: bool = opt(False, "Choose one of {a|b|c} and one line of a multi-line caption each time.")
    caption_prefix: str | None = opt(None, "Put before every caption.")
    caption_suffix: str | None = opt(None, "Put after every caption.")
    token_warmup_min: int = opt(1, "Tags kept at the start of token warm-up.", ge=0)
    token_warmup_step: float = opt(0.0, "Steps (or share of the run, below 1) until all tags are used.", ge=0)
    caption_dropout_rate: float = opt(0.0, "Chance that a caption is dropped whole.", ge=0, le=1)
    caption_dropout_every_n_epochs: int = opt(0, "Drop all captions in every n-th epoch; 0 is never.", ge=0)
    caption_tag_dropout_rate: float = opt(0.0, "Chance that a single tag is dropped.", ge=0, le=1)
    weighted_captions: bool = opt(False, "Read (word:1.3) in captions as emphasis.")


@dataclass(frozen=True, kw_only=True)
class BucketOptions:
    """Aspect-ratio buckets."""

    enable_bucket: bool = opt(False, "Sort pictures into sizes near their own shape instead of one square.")
    min_bucket_reso: int = opt(256, "Shortest bucket side in pixels.", ge=1)
    max_bucket_reso: int = opt(1024, "Longest bucket side in pixels.", ge=1)
    bucket_reso_steps: int = opt(64, "Bucket sides are multiples of this.", ge=1)
    bucket_no_upscale: bool = opt(False, "Never enlarge a picture to fill its bucket.")


@dataclass(frozen=True, kw_only=True)
class CacheOptions:
    """What is computed once instead of every step."""

    cache_latents: bool = opt(False, "Encode every picture once, before training.")
    vae_batch_size: int = opt(1, "Pictures that the VAE encodes at once.", ge=1)
    cache_latents_to_disk: bool = opt(False, "Keep encoded pictures as .npz beside the originals; implies cache_latents.")
    skip_cache_check: bool = opt(False, "Trust existing cache files without reading them.")
    cache_text_encoder_outputs: bool = opt(False, "Encode every caption once, before training; U-Net only.", only="caches_text")
    cache_text_encoder_outputs_to_disk: bool = opt(False, "Keep encoded captions as .npz beside the pictures.", only="caches_text")
    skip_image_check: bool = opt(False, "Start without decoding every image first; a damaged one then ends the run where it is met.", kit=True, resume=True)


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Number formats."""

    mixed_precision: Literal["no", "fp16", "bf16"] = opt("no", "Number format of the computation.")
    full_fp16: bool = opt(False, "Keep the adapter and its gradients in fp16 too.")
    full_bf16: bool = opt(False, "Keep the adapter and its gradients in bf16 too.")
    fp8_base: bool = opt(False, "Keep the base model in 8-bit floats.")
    fp8_base_unet: bool = opt(False, "Keep only the U-Net in 8-bit floats.")
    no_half_vae: bool = opt(False, "Run the VAE in 32 bit.")


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """Speed against memory."""

    mem_eff_attn: bool = opt(False, "Memory-saving attention; the built-in scaled-dot-product attention does this.", resume=True)
    torch_compile: bool = opt(False, "Compile the U-Net with torch.compile: a slow first step for each bucket, faster ones after.", resume=True)
    dynamo_backend: Literal["eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt", "onnxrt", "tensort", "ipex", "tvm"] = opt("inductor", "Backend of torch.compile.", resume=True)
    xformers: bool = opt(False, "Attention by xformers.", resume=True)
    sdpa: bool = opt(False, "Attention by PyTorch's scaled-dot-product kernels.", resume=True)
    gradient_checkpointing: bool = opt(False, "Recompute activations instead of keeping them: less memory, slower.", resume=True)
    lowram: bool = opt(False, "Load straight to the GPU, for machines with little main memory.", resume=True)
    highvram: bool = opt(False, "Do not empty the GPU's cache between latents.", resume=True)
    cpu_offload_checkpointing: bool = opt(False, "Keep checkpointed activations in main memory.", resume=True)
    checkpointed_blocks: int | None = opt(None, "With gradient_checkpointing: how many of the U-Net's blocks are computed twice, those that save most first; all if unset.", ge=1, kit=True, resume=True)
    streamed_blocks: int = opt(0, "How many of the U-Net's frozen blocks rest in main memory and are copied to the GPU when they are computed, the largest first.", ge=0, kit=True, resume=True)
    quantize_base: Literal["int8", "nf4"] | None = opt(None, "Keep the U-Net's frozen weights in 8-bit or 4-bit numbers and widen them where they are used; nf4 needs bitsandbytes.", kit=True)


@dataclass(frozen=True, kw_only=True)
class SavingOptions:
    """What is written, when, under which name."""

    output_dir: str | None = opt(None, "Folder for everything the run writes.", path=True)
    output_name: str | None = opt(None, "Base name of the trained file.", name_of_files=True)
    save_precision: Literal["float", "fp16", "bf16"] | None = opt(None, "Number format of the saved file; as trained if unset.", resume=True)
    save_every_n_epochs: int | None = opt(None, "Save a copy every n epochs.", ge=0, resume=True)
    save_every_n_steps: int | None = opt(None, "Save a copy every n steps.", ge=0, resume=True)
    save_n_epoch_ratio: int | None = opt(None, "Save about n copies in the whole run.", ge=0, resume=True)
    save_last_n_epochs: int | None = opt(None, "Keep epoch copies of the last n epochs only.", ge=0, resume=True)
    save_last_n_steps: int | None = opt(None, "Keep step copies of the last n steps only.", ge=0, resume=True)
    save_model_as: Literal["ckpt", "pt", "safetensors"] = opt("safetensors", "File form of the trained weights.", resume=True)
    save_peft: bool = opt(False, "Write a copy for diffusers and peft beside each LoRA, as NAME.peft.safetensors.", kit=True, resume=True)


@dataclass(frozen=True, kw_only=True)
class StateOptions:
    """Training states and exact resume."""

    save_last_n_epochs_state: int | None = opt(None, "The same for states.", ge=0, resume=True)
    save_last_n_steps_state: int | None = opt(None, "The same for states.", ge=0, resume=True)
    save_state: bool = opt(False, "Save the whole training state with every copy.", resume=True)
    save_state_on_train_end: bool = opt(False, "Save the training state at the end.", resume=True)
    resume: str | None = opt(None, "State folder to resume from exactly.", path=True, resume=True)
    skip_until_initial_step: bool = opt(False, "Skip the data up to initial_step instead of repeating it.")
    initial_epoch: int | None = opt(None, "Epoch to start counting from.", ge=1)
    initial_step: int | None = opt(None, "Step to start counting from.", ge=0)


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Preview pictures."""

    sample_every_n_steps: int | None = opt(None, "Make preview pictures every n steps.", resume=True)
    sample_at_first: bool = opt(False, "Make preview pictures before the first step.", resume=True)
    sample_every_n_epochs: int | None = opt(None, "Make preview pictures every n epochs; overrides the steps.", resume=True)
    sample_prompts: str | None = opt(None, "Prompt file of the previews (.txt, .toml, .json).", path=True, resume=True)
    ema_previews: bool = opt(False, "Make the previews with the moving average of ema_decay.", kit=True, resume=True)
    sample_sampler: Literal["ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle", "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a"] = opt("ddim", "Sampler of the previews.", resume=True)


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Console, TensorBoard, wandb."""

    console_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] | None = opt(None, "Least severity that the console shows.", resume=True)
    console_log_file: str | None = opt(None, "Also write the console's messages to this file.", path=True, resume=True)
    console_log_simple: bool = opt(False, "Plain console lines instead of the rich form.", resume=True)
    logging_dir: str | None = opt(None, "Folder for TensorBoard logs.", path=True, resume=True)
    log_with: Literal["tensorboard", "wandb", "all"] | None = opt(None, "Where curves are logged.", resume=True)
    log_prefix: str | None = opt(None, "Put before the name of the log folder.", name_of_files=True, resume=True)
    log_tracker_name: str | None = opt(None, "Name of the tracker.", resume=True)
    wandb_run_name: str | None = opt(None, "Name of the wandb run.", resume=True)
    log_tracker_config: str | None = opt(None, "TOML with the tracker's own settings.", path=True, resume=True)
    wandb_api_key: str | None = opt(None, "wandb key.", secret=True, resume=True)
    log_config: bool = opt(False, "Log the configuration with the curves.", resume=True)
    price_per_hour: float | None = opt(None, "What this machine costs an hour; plan and progress then say what the run costs.", ge=0, kit=True, resume=True)


@dataclass(frozen=True, kw_only=True)
class MetadataOptions:
    """What the LoRA file says about itself."""

    metadata_title: str | None = opt(None, "Title in the file's header; the output name if unset.")
    metadata_author: str | None = opt(None, "Author in the file's header.")
    metadata_description: str | None = opt(None, "Description in the file's header.")
    metadata_license: str | None = opt(None, "Licence in the file's header.")
    metadata_tags: str | None = opt(None, "Tags in the file's header, separated by commas.")
    metadata_usage_hint: str | None = opt(None, "How to use the file, in its header.")
    metadata_thumbnail: str | None = opt(None, "Picture file or data URL put into the header.", path=True)
    metadata_merged_from: str | None = opt(None, "Names of the models this one was merged from.")
    metadata_trigger_phrase: str | None = opt(None, "Words that call the trained concept.")
    metadata_preprocessor: str | None = opt(None, "Preprocessor that the file expects.")
    metadata_is_negative_embedding: str | None = opt(None, "Marks the file as a negative embedding.")
    no_metadata: bool = opt(False, "Keep training facts out of the file's header.")
    training_comment: str | None = opt(None, "A note kept in the file's header.")


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Upload to the Hugging Face hub."""

    huggingface_repo_id: str | None = opt(None, "Hub repository that saved files are uploaded to, too.", resume=True)
    huggingface_repo_type: str | None = opt(None, "Kind of that repository: model, dataset or space.", resume=True)
    huggingface_path_in_repo: str | None = opt(None, "Folder inside that repository; its top if unset.", resume=True)
    huggingface_token: str | None = opt(None, "Hub access token; without it huggingface_hub's own login is used.", secret=True, resume=True)
    huggingface_repo_visibility: str | None = opt(None, "private, or public: how a repository is made that is not there yet.", resume=True)
    save_state_to_huggingface: bool = opt(False, "Upload states too.", resume=True)
    resume_from_huggingface: bool = opt(False, "Resume from a state on the hub: resume is OWNER/REPO/PATH[:REVISION[:TYPE]].", resume=True)
    async_upload: bool = opt(False, "Upload in the background.", resume=True)


@dataclass(frozen=True, kw_only=True)
class DistributedOptions:
    """Several processes."""

    ddp_timeout: int | None = opt(None, "Minutes until a silent process counts as lost.", ge=1, resume=True)
    ddp_gradient_as_bucket_view: bool = opt(False, "Memory option of distributed training.", resume=True)
    ddp_static_graph: bool = opt(False, "Speed option of distributed training.", resume=True)
    deepspeed: bool = opt(False, "Train with DeepSpeed.")
    zero_stage: Literal[0, 1, 2, 3] = opt(2, "DeepSpeed ZeRO stage.")
    offload_optimizer_device: Literal["cpu", "nvme"] | None = opt(None, "Where DeepSpeed keeps optimizer states.")
    offload_optimizer_nvme_path: str | None = opt(None, "Folder for optimizer states on NVMe.", path=True)
    offload_param_device: Literal["cpu", "nvme"] | None = opt(None, "Where DeepSpeed keeps parameters.")
    offload_param_nvme_path: str | None = opt(None, "Folder for parameters on NVMe.", path=True)
    zero3_init_flag: bool = opt(False, "DeepSpeed ZeRO-3 initialisation.")
    zero3_save_16bit_model: bool = opt(False, "DeepSpeed ZeRO-3 saving.")
    fp16_master_weights_and_gradients: bool = opt(False, "DeepSpeed fp16 master weights.")


@dataclass(frozen=True, kw_only=True)
class DeprecatedOptions:
    """Old spellings that the reference still takes."""

    caption_extention: str | None = opt(None, "Old misspelling of caption_extension.")
    use_8bit_adam: bool = opt(False, "Old form of optimizer_type AdamW8bit.")
    use_lion_optimizer: bool = opt(False, "Old form of optimizer_type Lion.")


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Where options themselves come from."""

    config_file: str | None = opt(None, "TOML with any of these options.", path=True)
    output_config: bool = opt(False, "Write the options to config_file and stop.")
    overwrite: bool = opt(False, "Replace results of an earlier run under the same name instead of refusing to start.", kit=True)
    trust: tuple[str, ...] = opt((), "Dotted names (module or class) outside the allow-list that this run may import.", kit=True)
