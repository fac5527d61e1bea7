"""No argument is taken and ignored: every implemented one is read, and those without a test elsewhere act."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from docs.pages import arguments
from schemas import TrainConfig
from schemas.config import from_flat, table
from tests.fake_hub import FakeHub
from trainer import loop
from trainer import setup as prepare
from trainer.dataset.spec import resolve_datasets
from trainer.families import get
from trainer.output import hub
from trainer.plan.rates import multiplier
from trainer.plan.steps import count
from trainer.watch.report import Progress, Record, log_epoch
from trainer.watch.validation import Validation

ROOT = Path(__file__).parents[2]
IMPLEMENTED = [name for name, option in table().items() if not option.kit and arguments.state(name) == "implemented"]
ALONE: Any = SimpleNamespace(device=torch.device("cpu"), local_main_process_first=contextlib.nullcontext)
Start = Callable[..., int]


# The page


def test_the_reference_has_196_arguments() -> None:
    assert sum(not option.kit for option in table().values()) == 196


@pytest.mark.parametrize("name", IMPLEMENTED)
def test_an_implemented_argument_has_a_reader_and_a_test(name: str) -> None:
    assert arguments.readers(name) or name in arguments.ALWAYS
    assert arguments.tests(name)


# Every implemented argument is read while training


PARSERS = [f"schemas.{name}" for name in arguments.PARSERS]  # what the trainer takes its values from


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options that modules of the trainer ask a config for from now on, those that only describe it aside."""
    seen: set[str] = set()
    names = set(table())

    def recording(config: TrainConfig, name: str) -> Any:
        if name in names:
            asking = sys._getframe(1).f_globals["__name__"]
            about = name.startswith("metadata_") or name == "training_comment"
            of_trainer = asking.startswith("trainer.") or asking in PARSERS
            if of_trainer and (asking != "trainer.output.metadata" or about):
                seen.add(name)
        return object.__getattribute__(config, name)

    monkeypatch.setattr(TrainConfig, "__getattribute__", recording)
    return seen


def test_everything_is_read(
    start: Start, read: set[str], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, prompts = tmp_path / "img", tmp_path / "prompts.txt"
    shutil.copytree(pictures, data)
    prompts.write_text("n0m3 --w 64 --h 64 --s 1", encoding="utf-8")
    lora = str(tmp_path / "out" / "n0m3.safetensors")
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: None)
    assert hub.connect(TrainConfig(huggingface_token="hf_x")).token == "hf_x"
    monkeypatch.setattr(hub, "connect", lambda config: FakeHub())
    for out in ("out", "again"):  # the second time from the cache
        assert start(output_dir=tmp_path / out, max_train_steps=1, train_data_dir=data, cache_latents_to_disk=True) == 0
    assert start(
        output_dir=tmp_path / "two", max_train_epochs=2, train_batch_size=4, cache_latents=False, validation_split=0.3,
        min_snr_gamma=5, loss_type="huber", huber_schedule="constant", noise_offset=0.1, multires_noise_iterations=2,
        ip_noise_gamma=0.1, sample_prompts=prompts, sample_at_first=True, logging_dir=tmp_path / "logs",
        save_state=True, save_every_n_steps=1, save_every_n_epochs=1, base_weights=[lora],
        huggingface_repo_id="me/loras", save_state_to_huggingface=True, async_upload=True,
    ) == 0  # fmt: skip
    assert start("sdxl", output_dir=tmp_path / "three", max_train_steps=1, cache_text_encoder_outputs_to_disk=True,
                 train_data_dir=data, network_train_unet_only=True, torch_compile=True) == 0  # fmt: skip
    assert start(config_file=tmp_path / "written.toml", output_config=True) == 0
    assert TrainConfig(**tomllib.loads((tmp_path / "written.toml").read_text())).network_dim == 4
    for shape in ("cosine_with_restarts", "polynomial", "inverse_sqrt", "cosine_with_min_lr"):
        multiplier(TrainConfig(lr_scheduler=shape, lr_scheduler_min_lr_ratio=0.1), 10)
    (tmp_path / "in.json").write_text("{}", encoding="utf-8")
    resolve_datasets(TrainConfig(in_json=str(tmp_path / "in.json"), train_data_dir=str(data), resolution="64"), [])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    bar = Progress(1, TrainConfig(), shown=True)
    bar.begin(0)
    bar.close()
    assert [name for name in IMPLEMENTED if name not in read and name not in arguments.ALWAYS] == []


# What those do that no other test covers


def config(**options: Any) -> TrainConfig:
    return from_flat(options)[0]


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def norms(path: Path) -> list[float]:
    """‖α / r · B A‖ of every module."""
    lora = load_file(path)
    keys = {name.partition(".")[0] for name in lora}
    return [
        float((lora[f"{key}.alpha"] / 4 * lora[f"{key}.lora_up.weight"].flatten(1) @ down.flatten(1)).norm())
        for key in keys
        for down in [lora[f"{key}.lora_down.weight"]]
    ]


@pytest.fixture
def lora(start: Start, tmp_path: Path) -> Path:
    assert start(max_train_steps=1, learning_rate=0.05) == 0
    return tmp_path / "out" / "n0m3.safetensors"


def test_base_weights_are_merged_with_their_multipliers(lora: Path, base_models: dict[str, Path]) -> None:
    def weight(*strengths: float) -> torch.Tensor:
        files = {"base_weights": [str(lora)] * len(strengths), "base_weights_multiplier": list(strengths)}
        asked = config(pretrained_model_name_or_path=str(base_models["sd15"]), **files)
        models = prepare.load_models(get("sd15"), asked, ALONE, lambda text: None)
        return models.unet.mid_block.attentions[0].proj_in.weight

    base = weight()
    assert (weight(1.0) - base).abs().max() > 1e-3
    torch.testing.assert_close(weight(0.5) - base, (weight(1.0) - base) / 2)
    torch.testing.assert_close(weight(0.25, 0.75), weight(1.0))


def test_max_grad_norm_bounds_the_step(start: Start, tmp_path: Path) -> None:
    plain = {"optimizer_type": "SGDNesterov", "learning_rate": 1.0, "max_train_steps": 1}
    assert start(max_grad_norm=1e-6, **plain) == 0
    moved = [tensor for name, tensor in load_file(tmp_path / "out" / "n0m3.safetensors").items() if "lora_up" in name]
    assert 0 < float(torch.cat([tensor.flatten() for tensor in moved]).norm()) < 2e-6  # momentum makes it 1.9
    assert start(output_dir=tmp_path / "free", max_grad_norm=0, **plain) == 0
    assert max(norms(tmp_path / "free" / "n0m3.safetensors")) > 1e-4


def test_scale_weight_norms_holds_every_module(start: Start, tmp_path: Path) -> None:
    assert start(learning_rate=0.05, scale_weight_norms=0.01) == 0
    assert max(norms(tmp_path / "out" / "n0m3.safetensors")) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "steps", "epochs"),
    [
        ({}, [], [1, 2, 3, 4]),
        ({"validate_every_n_epochs": 2}, [], [2, 4]),
        ({"validate_every_n_steps": 3}, [3], [1, 2, 3, 4]),
    ],
)
def test_when_it_validates(options: dict[str, int], steps: list[int], epochs: list[int]) -> None:
    validation = Validation(None, config(**options))  # type: ignore[arg-type]
    assert [step for step in range(1, 5) if validation.due_at_step(step)] == steps
    assert [epoch for epoch in range(1, 5) if validation.due_at_epoch(epoch)] == epochs


@pytest.mark.parametrize(("most", "batches"), [(1, 1), (None, 2)])
def test_max_validation_steps(most: int | None, batches: int, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    timesteps: list[int] = []
    real = loop.Run.batch_loss

    def counted(run: loop.Run, batch: Any, cached: Any, timestep: int | None = None) -> torch.Tensor:
        timesteps.extend([] if timestep is None else [timestep])
        return real(run, batch, cached, timestep)

    monkeypatch.setattr(loop.Run, "batch_loss", counted)
    assert start(max_train_steps=1, validation_split=0.4, validation_seed=1, max_validation_steps=most) == 0
    assert timesteps == [200, 400, 600, 800] * batches


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"save_precision": "fp16"}, torch.float16), ({"mixed_precision": "bf16", "full_bf16": True}, torch.bfloat16)],
)
def test_number_formats_of_the_file(options: dict[str, Any], dtype: torch.dtype, start: Start, tmp_path: Path) -> None:
    assert start(max_train_steps=1, **options) == 0
    tensors = load_file(tmp_path / "out" / "n0m3.safetensors").items()
    assert {tensor.dtype for name, tensor in tensors if "alpha" not in name} == {dtype}


@pytest.mark.parametrize(("options", "eighths"), [({}, 0), ({"fp8_base_unet": True}, 1), ({"fp8_base": True}, 2)])
def test_fp8_keeps_the_base_model_small(options: dict[str, bool], eighths: int, base_models: dict[str, Path]) -> None:
    asked = config(pretrained_model_name_or_path=str(base_models["sd15"]), **options)
    models = prepare.load_models(get("sd15"), asked, ALONE, lambda text: None)
    parts = (models.unet, models.text_encoders[0])
    small = [any(weight.dtype == torch.float8_e4m3fn for weight in part.parameters()) for part in parts]
    assert sum(small) == eighths
    assert small == sorted(small, reverse=True)


@pytest.mark.parametrize(("lowram", "place"), [(False, "cpu"), (True, "cuda:3")])
def test_lowram_loads_straight_to_the_device(lowram: bool, place: str) -> None:
    asked: list[str] = []
    family = SimpleNamespace(
        load=lambda config, dtype, device: asked.append(device) or SimpleNamespace(), targets=lambda models: []
    )
    process = SimpleNamespace(device="cuda:3", local_main_process_first=contextlib.nullcontext)
    prepare.load_models(family, config(lowram=lowram), process, lambda text: None)  # type: ignore[arg-type]
    assert asked == [place]


@pytest.mark.parametrize(("highvram", "calls"), [(False, 1), (True, 0)])
def test_highvram_keeps_the_cache_of_the_gpu(highvram: bool, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.append(1))
    found, models = SimpleNamespace(validation=()), SimpleNamespace(vae=None, text_encoders=())
    process: Any = SimpleNamespace(device=torch.device("cuda"))
    prepare.fill_caches(found, config(highvram=highvram), None, models, process, print)  # type: ignore[arg-type]
    assert len(made) == calls


def test_xformers_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    unet = torch.nn.Module()
    unet.enable_xformers_memory_efficient_attention = lambda: called.append("xformers")
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: object())
    models: Any = SimpleNamespace(unet=unet, vae=torch.nn.Module(), text_encoders=())
    process: Any = SimpleNamespace(device=torch.device("cpu"))
    for wanted in (False, True):
        prepare.ready_models(models, None, config(xformers=wanted), process, prepare.Caches(None))  # type: ignore[arg-type]
    assert called == ["xformers"]


def test_torch_compile_takes_the_backend() -> None:
    backends: list[str] = []
    unet: Any = torch.nn.Module()
    unet.compile_repeated_blocks = lambda backend, dynamic: backends.append(backend)
    models: Any = SimpleNamespace(unet=unet, vae=torch.nn.Module(), text_encoders=())
    process: Any = SimpleNamespace(device=torch.device("cpu"))
    for wanted in (False, True):
        asked = config(torch_compile=wanted, dynamo_backend="aot_eager")
        prepare.ready_models(models, None, asked, process, prepare.Caches(None))  # type: ignore[arg-type]
    assert backends == ["aot_eager"]


@pytest.mark.slow
def test_a_compiled_unet_trains_to_the_same_weights(start: Start, tmp_path: Path) -> None:
    assert start(max_train_steps=2) == 0
    assert start(max_train_steps=2, output_dir=tmp_path / "fast", torch_compile=True, dynamo_backend="eager") == 0
    plain, compiled = (load_file(tmp_path / out / "n0m3.safetensors") for out in ("out", "fast"))
    assert all(torch.equal(plain[name], compiled[name]) for name in plain)


def test_initial_epoch_starts_there() -> None:
    steps = count(config(max_train_epochs=4, gradient_accumulation_steps=2), batches=6)
    assert loop.first_position(config(initial_epoch=3, gradient_accumulation_steps=2), steps) == loop.Position(6, 3, 0)


def test_log_folder_and_names(start: Start, tmp_path: Path) -> None:
    assert start(max_train_steps=1, logging_dir=tmp_path / "logs", log_with="tensorboard", log_prefix="frog_",
                 log_tracker_name="mine", log_config=True) == 0  # fmt: skip
    (folder,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(r"frog_\d{14}", folder.name)
    hyper = [path.read_bytes() for path in (folder / "mine").rglob("events*")]
    assert any(b"network_dim" in content for content in hyper)
    assert not any(b"train_data_dir" in content for content in hyper)


def test_the_loss_of_an_epoch_is_logged_over_epochs(start: Start, tmp_path: Path) -> None:
    """Reference section 14."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert start(max_train_epochs=2, train_batch_size=5, logging_dir=tmp_path / "logs") == 0
    (folder,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(folder / "network_train"))
    events.Reload()
    by_step = [event.value for event in events.Scalars("loss/current")]
    epochs = events.Scalars("loss/epoch_average")
    half = len(by_step) // 2
    means = [sum(part) / half for part in (by_step[:half], by_step[half:])]
    assert [event.step for event in epochs] == [1, 2]
    assert [event.value for event in epochs] == pytest.approx(means)
    assert events.Scalars("loss/average")[-1].value == pytest.approx(means[1])


def test_wandb_has_the_epoch_as_a_field() -> None:
    said: list[Any] = []
    tracker = SimpleNamespace(name="wandb", log=lambda values, step: said.append((values, step)))
    log_epoch([tracker], 0.5, epoch=2, step=40)
    assert said == [({"loss/epoch_average": 0.5, "epoch": 2, "global_step": 40}, 40)]


def test_wandb_gets_its_key_and_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys: list[str] = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=lambda key: keys.append(key)))
    asked = config(log_with="wandb", wandb_api_key="k" * 40, wandb_run_name="third try")
    assert prepare.tracker_settings(asked) == {"wandb": {"name": "third try"}}
    assert keys == ["k" * 40]
    own = tmp_path / "tracker.toml"
    own.write_text('[wandb]\nentity = "frogs"\n', encoding="utf-8")
    assert prepare.tracker_settings(config(log_tracker_config=str(own))) == {"wandb": {"entity": "frogs"}}


@pytest.mark.parametrize("simple", [False, True])
def test_console_log_simple_has_no_bar(simple: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = Progress(5, config(console_log_simple=simple), shown=True)
    progress.begin(0)
    progress.step(Record(5, 1, 0.5, {"unet": 1e-4}, 0.1, 1))
    progress.close()
    assert ("step 5/5" in capsys.readouterr().out) == simple


def test_what_the_header_says_of_the_model(start: Start, tmp_path: Path) -> None:
    assert start(max_train_steps=1, metadata_merged_from="a, b", metadata_preprocessor="canny") == 0
    found = header(tmp_path / "out" / "n0m3.safetensors")
    assert (found["modelspec.merged_from"], found["modelspec.preprocessor"]) == ("a, b", "canny")


def test_ddp_timeout_is_in_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[timedelta] = []
    real = prepare.InitProcessGroupKwargs
    monkeypatch.setattr(
        prepare, "InitProcessGroupKwargs", lambda timeout, **rest: (asked.append(timeout), real(timeout=timeout))[1]
    )
    prepare.make_accelerator(config(ddp_timeout=5))
    assert asked == [timedelta(minutes=5)]


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ({"textencoder": 5e-5, "unet": 1e-4}, "0.0001 (text encoder 5e-05)"),
        ({"textencoder": 1e-4, "unet": 1e-4}, "0.0001"),
        ({"unet_block1": 1e-5, "unet_block2": 2e-5}, "2e-05"),
        ({"textencoder": 5e-5}, "5e-05"),
        ({}, "0"),
    ],
)
def test_the_rate_shown_is_the_unets(rates: dict[str, float], shown: str) -> None:
    from trainer.watch.report import shown_rate

    assert shown_rate(rates) == shown
