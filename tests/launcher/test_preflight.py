from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.check.machine import Machine
from launcher.check.preflight import check_file, check_run, effective
from launcher.check.resolve import resolve
from schemas.problems import errors
from tests.launcher.conftest import MODULE, safetensors


def codes(checked) -> list[str]:
    return [problem.code for problem in errors(checked.problems)]


def test_a_good_file_has_no_errors(preset) -> None:
    checked = check_run(resolve(str(preset())))
    assert codes(checked) == []
    assert (checked.family, len(checked.scan.samples)) == ("sd15", 4)


def test_all_errors_come_at_once_and_nothing_is_written(preset, tmp_path: Path, files) -> None:
    file = preset(
        pretrained_model_name_or_path="/content/m.safetensors",
        train_data_dir="D:\\img",
        output_dir="",
        lr_warmup_steps=10,
        min_timestep=900,
        max_timestep=100,
    )
    before = files(tmp_path)
    found = set(codes(check_run(resolve(str(file)))))
    assert {"foreign-path", "missing-option", "timestep-range"} <= found
    assert files(tmp_path) == before


def test_the_checkpoint_decides_and_a_mismatch_says_both(preset, checkpoint) -> None:
    checked = check_run(resolve(str(preset(pretrained_model_name_or_path=str(checkpoint("sdxl"))))))
    (problem,) = [problem for problem in checked.problems if problem.code == "family-mismatch"]
    assert "SDXL checkpoint" in problem.must
    assert "SD 1.5 config" in problem.must
    assert "--set sdxl=true" in str(problem.fix)


def test_the_fix_of_a_mismatch_mends_it(preset, checkpoint) -> None:
    resolved = resolve(str(preset(pretrained_model_name_or_path=str(checkpoint("sdxl")))), {"sdxl": "true"})
    assert "family-mismatch" not in codes(check_run(resolved))


@pytest.mark.parametrize(
    ("name", "other"),
    [("sd15-character", "sdxl-character"), ("sd15-locon", "sdxl-locon"), ("sd15-anime", "sdxl-character")],
)
def test_a_mismatch_under_a_shipped_preset_names_the_preset_to_use(name, other, checkpoint, photos, tmp_path) -> None:
    sets = {"pretrained_model_name_or_path": str(checkpoint("sdxl")), "output_dir": str(tmp_path / "out")}
    checked = check_run(resolve(name, {**sets, "train_data_dir": str(photos)}))
    (problem,) = [problem for problem in checked.problems if problem.code == "family-mismatch"]
    assert f"use the preset {other}" in str(problem.fix)
    mended = check_run(resolve(other, {**sets, "train_data_dir": str(photos)}))
    assert "family-mismatch" not in codes(mended)


def test_an_sd_scripts_file_takes_the_family_of_its_checkpoint(checkpoint, photos, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'pretrained_model_name_or_path = "{checkpoint("sdxl")}"\ntrain_data_dir = "{photos}"\n'
        f'output_dir = "{tmp_path}/out"\nresolution = "64"\ncaption_extension = ".txt"\n'
    )
    checked = check_run(resolve(str(file)))
    assert (checked.family, codes(checked)) == ("sdxl", [])


@pytest.mark.parametrize(("family", "code"), [("flux", "unsupported-family"), ("sdxl", "family-mismatch")])
def test_other_checkpoints_are_refused_by_name(preset, checkpoint, family, code) -> None:
    assert code in codes(check_run(resolve(str(preset(pretrained_model_name_or_path=str(checkpoint(family)))))))


def test_a_lora_is_no_base_model(preset, lora) -> None:
    assert codes(check_run(resolve(str(preset(pretrained_model_name_or_path=str(lora())))))) == ["not-a-checkpoint"]


@pytest.mark.parametrize("folder", [False, True])
def test_what_is_no_checkpoint_is_refused_before_the_trainer_starts(preset, tmp_path: Path, folder: bool) -> None:
    model = tmp_path / "strange.safetensors"
    if folder:
        model.mkdir()
    else:
        save_file({"weight": np.zeros(3, np.float32)}, model)
    checked = check_run(resolve(str(preset(pretrained_model_name_or_path=str(model)))))
    (problem,) = errors(checked.problems)
    assert (problem.code, problem.key) == ("not-a-checkpoint", "pretrained_model_name_or_path")
    assert "unet/config.json" in problem.must if folder else "no checkpoint" in problem.must


def test_a_pickle_is_left_to_the_trainer(preset, tmp_path: Path) -> None:
    model = tmp_path / "old.ckpt"
    model.write_bytes(b"anything")
    checked = check_run(resolve(str(preset(pretrained_model_name_or_path=str(model)))))
    assert ("unknown-family", "warning") in [(problem.code, problem.severity) for problem in checked.problems]


def test_a_truncated_checkpoint(preset, checkpoint) -> None:
    model = checkpoint("sd15")
    model.write_bytes(model.read_bytes()[:-100])
    file = preset()
    model.write_bytes(model.read_bytes()[:-100])
    checked = check_run(resolve(str(file)))
    assert codes(checked) == ["truncated-file"]
    assert checked.problems[0].key == "pretrained_model_name_or_path"
    assert model.name in str(checked.problems[0])


def test_a_hub_id_is_found_where_it_was_downloaded(preset, tmp_path: Path, monkeypatch) -> None:
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    checked = check_run(resolve(str(preset(pretrained_model_name_or_path="some/model"))))
    assert checked.resolved.config.pretrained_model_name_or_path == str(snapshot)
    assert "not-downloaded" in codes(check_run(resolve(str(preset(pretrained_model_name_or_path="other/model")))))


def test_rank_and_alpha_must_be_those_of_the_weights(preset, lora) -> None:
    checked = check_run(resolve(str(preset(network_weights=str(lora(rank=8, alpha=8))))))
    assert codes(checked) == ["rank-mismatch", "rank-mismatch"]
    assert [problem.fix.split(",")[0] for problem in errors(checked.problems)] == [
        "--set network_dim=8",
        "--set network_alpha=8",
    ]
    fitting = preset(network_weights=str(lora(rank=8, alpha=8)), network_dim=8, network_alpha=8)
    assert codes(check_run(resolve(str(fitting)))) == []


def test_weights_of_another_family_are_refused(preset, lora) -> None:
    assert "lora-family" in codes(check_run(resolve(str(preset(network_weights=str(lora(width=2048)))))))


def test_a_lora_of_another_kind_is_refused_with_what_takes_it(preset, lora) -> None:
    weights = {"network_weights": str(lora()), "network_dim": 4, "network_alpha": 2}
    assert codes(check_run(resolve(str(preset(**weights))))) == []
    other = resolve(str(preset(**weights)), {"network_module": "lycoris.kohya", "network_args": "algo=loha"})
    (problem,) = errors(check_run(other).problems)
    assert (problem.code, problem.key) == ("other-network-kind", "network_weights")
    assert "--set network_module=networks.lora" in problem.fix
    dora = resolve(str(preset(**weights)), {"network_module": "lycoris.kohya", "network_args": "dora_wd=True"})
    assert codes(check_run(dora)) == ["other-network-kind"]
    free = {"network_module": "lycoris.kohya", "network_args": "dora_wd=True", "dim_from_weights": "true"}
    assert codes(check_run(resolve(str(preset(**weights)), free))) == []


@pytest.mark.parametrize(("args", "found"), [
    ("conv_dim=2", []), ("conv_dim=3", ["rank-mismatch"]), ("conv_dim=2 use_tucker=True", ["other-network-kind"]),
    ("algo=lokr", ["other-network-kind"]),
])  # fmt: skip
def test_convolutions_of_a_lora_to_go_on_with(preset, tmp_path: Path, args, found) -> None:
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    shapes = {f"{MODULE}.lora_down.weight": (4, 768), f"{MODULE}.lora_up.weight": (320, 4), f"{MODULE}.alpha": (),
              f"{conv}.lora_down.weight": (2, 320, 3, 3), f"{conv}.lora_up.weight": (320, 2, 1, 1)}  # fmt: skip
    file = safetensors(tmp_path / "a.safetensors", shapes, {f"{MODULE}.alpha": 2.0}, None)
    kind = {"network_module": "lycoris.kohya", "network_args": args}
    form = preset(network_weights=str(file), network_dim=4, network_alpha=2)
    assert codes(check_run(resolve(str(form), kind))) == found


@pytest.mark.parametrize(("args", "alpha"), [("rs_lora=True", 4), ("algo=dylora block_size=4", 8)])
def test_alpha_is_compared_as_files_of_its_kind_have_it(preset, lora, args, alpha) -> None:
    file = preset(network_weights=str(lora(alpha=alpha)), network_dim=4, network_alpha=2)
    kind = {"network_module": "lycoris.kohya", "network_args": args}
    assert codes(check_run(resolve(str(file), kind))) == []


def test_base_weights_are_looked_at_too(preset, lora, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no")
    for file, code in ((lora(width=2048), "lora-family"), (broken, "not-safetensors")):
        found = check_run(resolve(str(preset()), {"base_weights": str(file)}))
        assert [(one.code, one.key) for one in errors(found.problems)] == [(code, "--set base_weights")]
    assert codes(check_run(resolve(str(preset()), {"base_weights": str(lora())}))) == []


def test_the_numbered_folder_instead_of_its_parent(preset, photos) -> None:
    checked = check_run(resolve(str(preset(train_data_dir=str(photos / "3_frog")))))
    assert codes(checked) == ["numbered-folder"]


def test_steps_are_counted_as_the_form_does(preset) -> None:
    # 4 pictures x 3 / batch 2 x epoch 2
    resolved = check_run(resolve(str(preset()))).resolved
    assert resolved.config.max_train_steps == 12
    assert resolved.argument_table()["max_train_steps"]["origin"] == "computed"


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"gradient_accumulation_steps": 4}, 3),
        ({"epoch": 1}, 6),
        ({"max_train_steps": 7}, 7),
    ],
)
def test_steps_of_the_form_in_other_cases(preset, changes, steps) -> None:
    assert check_run(resolve(str(preset(**changes)))).resolved.config.max_train_steps == steps


def test_no_pictures_is_said_once(preset, photos) -> None:
    for path in (photos / "3_frog").iterdir():
        path.unlink()
    said = [problem.code for problem in check_run(resolve(str(preset()))).problems]
    assert "no-images" in said
    assert "no-steps" not in said


def test_regularisation_pictures_double_the_forms_count(preset, photos, tmp_path: Path) -> None:
    (tmp_path / "reg").mkdir()
    (photos / "3_frog").rename(tmp_path / "reg" / "1_frog")
    (photos / "3_frog").mkdir()
    for path in (tmp_path / "reg" / "1_frog").iterdir():
        (photos / "3_frog" / path.name).write_bytes(path.read_bytes())
    assert check_run(resolve(str(preset(reg_data_dir=str(tmp_path / "reg"))))).resolved.config.max_train_steps == 24


def test_rewrites_are_said_and_reach_the_fates(preset) -> None:
    resolved, problems = effective(resolve(str(preset(cache_latents=False, cache_latents_to_disk=True))))
    assert resolved.config.cache_latents
    assert any(problem.code == "rewritten" and problem.severity == "note" for problem in problems)


def test_validate_needs_neither_model_nor_pictures(preset) -> None:
    file = preset(
        pretrained_model_name_or_path="C:\\models\\m.safetensors", train_data_dir="/content/img", output_dir=""
    )
    checked = check_file(resolve(str(file)))
    assert checked.ok
    told = {problem.key: (problem.severity, problem.code) for problem in checked.problems}
    assert told["pretrained_model_name_or_path"] == ("warning", "foreign-path")
    assert told["output_dir"] == ("note", "missing-option")


def test_what_this_machine_cannot_do_is_replaced_and_said(preset) -> None:
    checked = check_run(resolve(str(preset(mixed_precision="fp16", xformers="xformers"))), Machine())
    assert {change.argument for change in checked.adapted} == {"mixed_precision", "xformers", "sdpa"}
    assert checked.resolved.argument_table()["mixed_precision"] == {
        "value": "no",
        "origin": "adapted",
        "from": "mixed_precision",
    }


def test_bad_prompts_are_found_before_the_run(preset, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("frog")
    found = codes(check_run(resolve(str(preset(sample_every_n_epochs=1)), {"sample_prompts": str(tmp_path / "p.csv")})))
    assert "prompt-file-type" in found


def test_a_key_that_another_option_makes_idle_has_that_fate(preset) -> None:
    found = check_file(resolve(str(preset(sdxl=True, clip_skip=3)))).resolved.draft.keys["clip_skip"]
    assert (found.status, found.why is not None and "SDXL" in found.why) == ("no-effect", True)
