"""Why a run failed, in one sentence, and what to try: known failures recognised in the trainer's own words."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A failure that is known.

    `patterns` are looked for in the trainer's exceptions, `seen` in all of its output; `keys` are the options that have
    to do with it; `sets` are the K=V words of a command that mends it, `fits` says that the memory plan finds them.
    `example` is a real message.
    """

    name: str
    cause: str
    patterns: tuple[str, ...]
    advice: str
    example: str
    seen: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    sets: tuple[str, ...] = ()
    fits: bool = False
    again: bool = True  # going on from the last state makes sense once the advice is taken


@dataclass(frozen=True)
class Failure:
    """`cause` is the trainer's own last error or the known meaning of it; `advice` is empty when nothing is known."""

    cause: str
    advice: str = ""
    kind: Kind | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return self.kind.keys if self.kind else ()


MEMORY_KEYS = ("gradient_checkpointing", "cache_latents", "train_batch_size", "resolution", "optimizer_type",
               "fp8_base")  # fmt: skip
LOADER_KEYS = ("max_data_loader_n_workers", "persistent_data_loader_workers")

KINDS: tuple[Kind, ...] = (
    Kind(
        "gpu-memory",
        "the GPU's memory is full",
        (r"OutOfMemoryError", r"(?:CUDA|HIP) out of memory", r"CUBLAS_STATUS_ALLOC_FAILED"),
        "the listed changes make it fit; close other programs that use the GPU",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 512.00 MiB. GPU 0 has a total capacity of 7.78 "
        "GiB of which 301.56 MiB is free.",
        keys=MEMORY_KEYS,
        fits=True,
    ),
    Kind(
        "worker-killed",
        "a process that prepares pictures was killed, usually because main memory (in a container: shared memory) is "
        "full",
        (r"DataLoader worker .*(?:exited|killed|Bus error)", r"insufficient shared memory", r"BrokenProcessPool"),
        "prepare pictures in the training process itself; in Docker, a larger --shm-size",
        "RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed. ",
        seen=(r"DataLoader worker \(pid", r"worker .*Bus error"),
        keys=LOADER_KEYS,
        sets=("max_data_loader_n_workers=0", "persistent_data_loader_workers=false"),
    ),
    Kind(
        "main-memory",
        "main memory is full",
        (r"DefaultCPUAllocator: .*(?:can't|not enough)", r"MemoryError", r"Cannot allocate memory", r"bad_alloc"),
        "close other programs; fewer worker processes, a smaller batch, latents cached on the disk",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 1125899906842624 bytes. Error code 12 (Cannot allocate memory)",
        keys=("max_data_loader_n_workers", "train_batch_size", "cache_latents_to_disk", "lowram"),
        sets=("max_data_loader_n_workers=0", "persistent_data_loader_workers=false"),
    ),
    Kind(
        "killed",
        "the trainer was killed from outside, most often by the system because main memory was full",
        (),
        "close other programs; fewer worker processes, a smaller batch, latents cached on the disk",
        "subprocess.CalledProcessError: Command '['python', '-m', 'trainer']' died with <Signals.SIGKILL: 9>.",
        seen=(r"signal 9\b", r"SIGKILL", r"another process of this run has ended"),
        keys=("max_data_loader_n_workers", "train_batch_size", "cache_latents_to_disk", "lowram"),
        sets=("max_data_loader_n_workers=0", "persistent_data_loader_workers=false"),
    ),
    Kind(
        "bad-cache",
        "a cache file beside the pictures holds values that are no numbers",
        (r"; cause: the (?:cache file|text outputs cached)",),
        "delete the file that is named; it is made again",
        "TrainingStopped: step 3: the loss is nan; cause: the cache file a/1_0512x0512_sd.npz holds "
        "values that are no numbers: delete it, it is made again",
        keys=("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"),
    ),
    Kind(
        "bad-vae",
        "the VAE makes no numbers of a picture",
        (r"; cause: (?:the VAE makes no numbers|the latents of)",),
        "no_half_vae=true where it runs in half precision, else another VAE",
        "TrainingStopped: step 1: the loss is nan; cause: the VAE makes no numbers of a/1.png: set "
        "no_half_vae",
        keys=("no_half_vae", "vae", "mixed_precision"),
        sets=("no_half_vae=true",),
    ),
    Kind(
        "nan",
        "the loss or a gradient became NaN or infinite",
        (r"the (?:loss|gradient norm) is (?:nan|-?inf)", r"(?i)\bnan\b.*\bdetected", r"(?i)loss is nan"),
        "a lower learning rate, mixed_precision=bf16 on GPUs from 2020 on, no_half_vae=true for SDXL",
        "TrainingStopped: step 12: the loss is nan; likely causes: the VAE overflows in fp16: set "
        "no_half_vae; the weights of step 11 are in out/n0m3-step00000011.safetensors",
        keys=("learning_rate", "unet_lr", "text_encoder_lr", "mixed_precision", "no_half_vae", "full_fp16",
              "max_grad_norm"),
        sets=("no_half_vae=true",),
    ),
    Kind(
        "port-in-use",
        "another program, often a second run, uses the port of this run",
        (r"EADDRINUSE", r"(?i)address already in use", r"another process is utilizing"),
        "--main-port with a free number; without it the launcher chooses one itself",
        "RuntimeError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: "
        "false, code: -98, name: EADDRINUSE, message: address already in use",
    ),
    Kind(
        "libuv",
        "this PyTorch, as on Windows, was built without libuv, which starting several processes asks for",
        (r"(?i)libuv support",),
        "set the environment variable USE_LIBUV to 0; kohyakit launch does so on Windows",
        "torch.distributed.DistStoreError: use_libuv was requested but PyTorch was built without libuv support, run "
        "with USE_LIBUV=0 to disable it.",
    ),
    Kind(
        "no-answer",
        "the processes of the run did not answer each other in time",
        (r"(?i)collective operation timeout", r"Timed out (?:waiting|after|initializing)", r"Socket Timeout",
         r"ncclSystemError", r"ncclUnhandledCudaError", r"ncclRemoteError", r"DistStoreError", r"DistNetworkError",
         r"Gloo connectFullMesh failed", r"could not join the other processes", r"self-test of the connection failed"),
        "when one process has more to prepare than the others, a longer ddp_timeout (minutes); between machines, check "
        "--main-ip and the firewall and name the network card in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME; on one "
        "machine with consumer cards, NCCL_P2P_DISABLE=1",
        "[rank1]:[E923 10:12:44.000000000 ProcessGroupNCCL.cpp:632] [Rank 1] Watchdog caught collective operation "
        "timeout: WorkNCCL(SeqNum=41, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600021 "
        "milliseconds before timing out.",
        seen=(r"Watchdog caught collective operation timeout",),
        keys=("ddp_timeout",),
        sets=("ddp_timeout=120",),
    ),
    Kind(
        "bitsandbytes",
        "bitsandbytes, which 8-bit optimizers need, does not find CUDA of the right version",
        (r"(?i)bitsandbytes.*(?:compiled without|CUDA|not available|library load error)", r"CUDA Setup failed",
         r"libbitsandbytes", r"str2optimizer8bit", r"cadam_8bit|cadamw?_8bit"),
        "pip install -U bitsandbytes; or the same optimizer in 32 bit",
        "RuntimeError: Attempted to use bitsandbytes native library functionality but it's not available.",
        keys=("optimizer_type", "use_8bit_adam"),
        sets=("optimizer_type=AdamW", "use_8bit_adam=false"),
    ),
    Kind(
        "missing-package",
        "a Python package is missing",
        (r"No module named '([\w.-]+)'", r"No package metadata was found for ([\w.-]+)"),
        "pip install {0}",
        "ModuleNotFoundError: No module named 'prodigyopt'",
        keys=("optimizer_type", "network_module", "log_with"),
    ),
    Kind(
        "disk-full",
        "the disk is full",
        (r"No space left on device", r"Disk quota exceeded", r"os error 28", r"PytorchStreamWriter failed"),
        "make room, save less often (save_every_n_epochs, save_last_n_epochs), or output_dir on another disk",
        "OSError: [Errno 28] No space left on device",
        seen=(r"No space left on device",),
        keys=("output_dir", "save_every_n_epochs", "save_every_n_steps", "save_last_n_epochs", "save_state",
              "cache_latents_to_disk"),
    ),
    Kind(
        "wrong-shape",
        "a weight file does not fit the model: it is of another family, or of another rank",
        (r"Error\(s\) in loading state_dict", r"size mismatch for", r"(?i)shapes? .*cannot be multiplied",
         r"is a LoRA for .*, the base model is"),
        "network_weights must be a LoRA for this base model, network_dim and network_alpha those of that file",
        "RuntimeError: Error(s) in loading state_dict for Linear:",
        keys=("pretrained_model_name_or_path", "network_weights", "network_dim", "network_alpha", "vae"),
        again=False,
    ),
    Kind(
        "corrupt-file",
        "a model file is damaged or incomplete",
        (r"SafetensorError", r"UnpicklingError: (?:invalid load key|pickle data was truncated)",
         r"PytorchStreamReader failed", r"^EOFError", r"InvalidHeader", r"Unsupported operand \d+"),
        "copy or download it again; kohyakit inspect tells whether a .safetensors file is whole",
        "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata, file not fully "
        "covered",
        keys=("pretrained_model_name_or_path", "vae", "network_weights", "base_weights"),
    ),
    Kind(
        "unsafe-file",
        "a .ckpt or .pt file holds more than numbers: opening it could run code",
        (r"Weights only load failed", r"Unsupported (?:global|class)", r"cannot be read as tensors alone"),
        "take the .safetensors version of the model, or, if you trust whoever made it, add --trust and the file's name",
        "_pickle.UnpicklingError: Weights only load failed. This file can still be loaded, to do so you have two "
        "options, do those steps only if you trust the source of the checkpoint.",
        keys=("pretrained_model_name_or_path", "vae", "network_weights"),
        again=False,
    ),
    Kind(
        "old-driver",
        "the GPU's driver or the GPU itself is too old for this PyTorch",
        (r"CUDA driver version is insufficient", r"NVIDIA driver on your system is too old", r"no kernel image"),
        "update the driver, or install a PyTorch that was built for it",
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ),
    Kind(
        "gpu-fault",
        "the GPU stopped in the middle of a computation: an unstable card or driver, or a fault in a kernel",
        (r"CUDA error: (?!no kernel|out of memory)", r"CUBLAS_STATUS_(?!ALLOC)", r"CUDNN_STATUS", r"cuDNN error"),
        "undo overclocking, update the driver; if it comes back, set xformers=false and sdpa=true",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        keys=("xformers", "sdpa", "torch_compile"),
        sets=("xformers=false", "sdpa=true"),
    ),
    Kind(
        "offline",
        "something had to be downloaded, and nothing is during a run",
        (r"(?i)couldn't connect to", r"LocalEntryNotFoundError", r"OfflineModeIsEnabled", r"MaxRetryError"),
        "name files on this machine",
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
        "cached files.",
        keys=("pretrained_model_name_or_path", "vae", "log_with", "huggingface_repo_id"),
    ),
    Kind(
        "too-many-files",
        "more files are open than the system allows",
        (r"Too many open files", r"received 0 items of ancdata"),
        "fewer worker processes, or raise the limit with ulimit -n",
        "OSError: [Errno 24] Too many open files",
        keys=LOADER_KEYS,
        sets=("max_data_loader_n_workers=0", "persistent_data_loader_workers=false"),
    ),
    Kind(
        "disk-error",
        "the disk cannot be written or read any more",
        (r"Input/output error", r"Read-only file system"),
        "look after the disk and how it is mounted (dmesg tells), or output_dir on another one",
        "OSError: [Errno 5] Input/output error: 'out/n0m3.safetensors'",
        keys=("output_dir", "logging_dir"),
    ),
    Kind(
        "not-permitted",
        "a file or folder may not be read or written",
        (r"Permission denied", r"PermissionError"),
        "check the owner of output_dir and of the pictures",
        "PermissionError: [Errno 13] Permission denied: 'out/n0m3.safetensors'",
        keys=("output_dir", "logging_dir"),
    ),
)  # fmt: skip

ERROR = re.compile(
    r"^(?:\[rank\d+\]:? ?)?((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Exit|Interrupt|Stopped|Pool))"
    r"(?:: ?(.*))?$"
)
NOT_THE_CAUSE = ("CalledProcessError", "ChildFailedError")
# What the other processes say when one has gone.
AFTERMATH = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|communicator was aborted|remote process exited|ncclRemoteError"
)
FOLLOWING = 6  # lines of an exception's message that are read with its first


def diagnose(lines: Sequence[str], code: int) -> Failure:
    """The first real cause in a failed trainer's output; what follows from another process's end is no cause."""
    errors = list(_errors(lines))
    own = [number for number in errors if not AFTERMATH.search(lines[number])] or errors
    for number in own:
        message = "\n".join(lines[number : number + FOLLOWING])
        if (found := _recognised(message, "patterns")) is not None:
            return found
    everything = "\n".join(lines) + (f"\nsignal {-code}" if code < 0 and not own else "")
    if (found := _recognised(everything, "seen")) is not None:
        return found
    said = lines[own[-1]].strip() if own else None
    return Failure(said or (f"it was ended by signal {-code}" if code < 0 else f"it ended with code {code}"))


def _errors(lines: Sequence[str]) -> Iterator[int]:
    for number, line in enumerate(lines):
        found = ERROR.match(line)
        if found and not found.group(1).endswith(NOT_THE_CAUSE):
            yield number


def _recognised(text: str, place: str) -> Failure | None:
    """The first known failure that `text` shows, with the words of the error itself."""
    found = next(
        (
            (kind, hit)
            for kind in KINDS  # the more special ones stand first
            for pattern in getattr(kind, place)
            if (hit := re.search(pattern, text, re.MULTILINE))
        ),
        None,
    )
    if found is None:
        return None
    kind, hit = found
    line = text[text.rfind("\n", 0, hit.start()) + 1 :].partition("\n")[0].strip()
    said = "" if hit.group(0).startswith("signal ") else f" ({line})"
    return Failure(kind.cause + said, kind.advice.format(*hit.groups()), kind)


def last_error(lines: Sequence[str]) -> str | None:
    """The exception that ended the trainer: the last `SomeError: message` that is not a wrapper's."""
    numbers = list(_errors(lines))
    return lines[numbers[-1]].strip() if numbers else None


SPILL = (
    "the driver is moving the GPU's memory to main memory, which makes steps many times slower: the card is too full"
)
PAGE_HEAD = """# When a run fails

`kohyakit launch` and `kohyakit resume` read what the trainer said last and answer with the cause, the options that have
to do with it, and a command that goes on where the run ended. Exit code 3 means that the run failed; what was saved is
named. This page is written by `python docs/write_failures.py` from `launcher/run/failures.py`.

| failure | what it means | what helps | options |
|---|---|---|---|
"""
PAGE_TAIL = f"""
## Slow instead of failed

On Windows and WSL the NVIDIA driver does not always let a full card fail. When steps suddenly take ten times as long
and the card is full, the launcher says during the run: *{SPILL}*. Stop it with Ctrl-C (the state is kept), then
`kohyakit plan FILE --vram GB` lists what makes it fit. In the driver's settings, "CUDA - Sysmem Fallback Policy" turns
the moving off.

## Several processes on Windows

NCCL does not exist there and PyTorch is built without libuv: the launcher sets `USE_LIBUV=0`, and processes talk
through gloo. Everything else is the same.

## What the messages look like

"""


def page() -> str:
    """docs/failures.md: every known failure with its meaning, remedy, options and a real message."""
    rows, examples = [], []
    for kind in KINDS:
        advice = kind.advice.replace("{0}", "NAME")
        ready = " ".join(f"--set {word}" for word in kind.sets)
        if kind.fits:
            ready = "--set ... for every change that the memory plan finds"
        helps = advice + (f"; ready: `{ready}`" if ready else "")
        rows.append(f"| {kind.name} | {kind.cause} | {helps} | {', '.join(f'`{key}`' for key in kind.keys)} |")
        examples.append(f"- {kind.name}: `{kind.example.strip()}`")
    return PAGE_HEAD + "\n".join(rows) + "\n" + PAGE_TAIL + "\n".join(examples) + "\n"
