from __future__ import annotations

import pytest

from launcher.check.resolve import (
    UsageError,
    preset_path,
    presets,
    resolve,
    settle,
    split_sets,
)
from launcher.formats.base import Draft, GuiSteps, Setting
from schemas.problems import ConfigError, Problem


def test_set_lies_over_the_file_and_the_file_over_defaults(preset) -> None:
    found = resolve(str(preset(network_dim=8)), {"network_alpha": "3"})
    assert (found.config.network_dim, found.config.network_alpha, found.config.huber_c) == (8, 3.0, 0.1)
    origins = found.argument_table()
    assert origins["network_dim"] == {"value": 8, "origin": "file", "from": "network_dim"}
    assert origins["network_alpha"]["origin"] == "--set"
    assert origins["huber_schedule"]["origin"] == "default"


def test_a_preset_is_an_origin_of_its_own() -> None:
    assert resolve("toy").argument_table()["network_dim"]["origin"] == "preset"


def test_presets_are_found_with_and_without_extension() -> None:
    assert presets()
    for path in presets():
        assert preset_path(path.stem) == preset_path(path.name) == path


def test_an_empty_set_unsets(preset) -> None:
    assert resolve(str(preset(seed=7)), {"seed": ""}).config.seed is None


def test_a_renamed_key_keeps_its_name_and_line_in_messages(preset) -> None:
    found = resolve(str(preset(max_resolution="64,64")))
    place = found.placed(Problem(code="x", key="resolution", must="y"))
    assert (place.key, place.line) == ("max_resolution", 1)


def test_a_key_of_the_form_is_read_by_the_form(preset) -> None:
    assert resolve(str(preset()), {"epoch": "5"}).draft.gui_steps == GuiSteps(5)
    assert resolve(str(preset()), {"LoRA_type": "LyCORIS/LoHa"}).config.network_module == "lycoris.kohya"


@pytest.mark.parametrize("word", ["0", ""])
def test_steps_of_0_are_the_forms_word_for_counting_them(preset, word) -> None:
    found = resolve(str(preset(max_train_steps=500)), {"max_train_steps": word})
    assert (found.draft.gui_steps, found.problems) == (GuiSteps(2), ())
    assert "computed" in str(found.draft.keys["max_train_steps"].why)
    assert resolve(str(preset(max_train_epochs=7)), {"max_train_epochs": word}).config.max_train_epochs is None


def test_only_a_form_counts_the_steps(tmp_path) -> None:
    (tmp_path / "a.toml").write_text("max_train_steps = 5\nmax_train_epochs = 2\n")
    with pytest.raises(UsageError, match="only a Kohya form"):
        resolve(str(tmp_path / "a.toml"), {"max_train_steps": "0"})


def test_a_set_scheduler_decides_whether_the_form_warms_up(preset) -> None:
    source = preset(lr_scheduler="constant", lr_warmup=10, max_train_steps=50)
    assert resolve(str(source)).config.lr_warmup_steps == 0
    assert resolve(str(source), {"lr_scheduler": "constant_with_warmup"}).config.lr_warmup_steps == 0.1


def test_a_set_number_is_not_remarked_upon(preset) -> None:
    assert resolve(str(preset()), {"max_train_epochs": "3"}).problems == ()


def test_the_forms_own_words_are_taken_for_a_flag(preset) -> None:
    found = resolve(str(preset(xformers="sdpa")), {"xformers": "xformers"})
    assert found.config.xformers
    assert not found.config.sdpa


@pytest.mark.parametrize("word", ["netwrk_dim=4", "network_train_unet_only=perhaps", "no_such_thing=1"])
def test_unknown_keys_are_a_wrong_command_line(preset, word) -> None:
    with pytest.raises(UsageError, match="--set"):
        resolve(str(preset()), split_sets([word]))


def test_the_nearest_name_is_offered(preset) -> None:
    with pytest.raises(UsageError, match="did you mean network_dim"):
        resolve(str(preset()), {"network_dm": "4"})


def test_set_needs_an_equals_sign() -> None:
    with pytest.raises(UsageError, match="KEY=VALUE"):
        split_sets(["network_dim"])


def test_launch_words_may_be_set(preset) -> None:
    assert resolve(str(preset()), {"num_processes": "2"}).draft.accelerate["num_processes"] in ("2", 2)


def test_a_length_that_is_set_beats_the_files_epochs(preset) -> None:
    found = resolve(str(preset(max_train_epochs=50)), {"max_train_steps": "20"})
    assert (found.config.max_train_steps, found.config.max_train_epochs) == (20, None)
    assert "length-replaced" in [problem.code for problem in found.problems]


def test_epochs_that_are_set_stop_the_forms_own_count(preset) -> None:
    assert resolve(str(preset()), {"max_train_epochs": "3"}).draft.gui_steps is None


def test_all_bad_values_are_collected_with_their_places() -> None:
    draft = Draft("sd-scripts", "a.toml", lines={"network_dim": 3})
    draft.arguments = {
        "network_dim": Setting("x", "file", "network_dim"),
        "seed": Setting("y", "--set"),
        "network_alpha": Setting(2, "file", "network_alpha"),
    }
    found = settle(draft)
    assert [(problem.key, problem.line) for problem in found.problems] == [("network_dim", 3), ("--set seed", None)]
    assert found.config.network_alpha == 2


def test_secrets_are_not_shown(preset) -> None:
    table = resolve(str(preset()), {"wandb_api_key": "abc"}).argument_table()
    assert table["wandb_api_key"]["value"] == "***"


def test_a_missing_file_names_presets() -> None:
    with pytest.raises(ConfigError, match="neither a file nor a preset"):
        resolve("nothing-like-it.json")
