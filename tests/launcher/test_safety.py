"""A preset is data: what it may not start, reach or carry away, and that secrets stay where they are."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

TOKEN = "hf_" + "Zq7" * 12
KEY = "a1b2c3d4e5" * 4  # the form of a wandb key


def planned(kohyakit, *words) -> tuple[int, set[str]]:
    found = kohyakit("plan", *words, "--json")
    return found.exit_code, {problem["code"] for problem in json.loads(found.stdout)["problems"]}


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--module evil", "module"),
        ("-m evil", "m"),
        ("--no_python ./evil.sh", "no_python"),
        ("--main_training_function evil", "main_training_function"),
        ("--deepspeed_hostfile hosts", "deepspeed_hostfile"),
        ("--mpirun_hostfile=hosts", "mpirun_hostfile"),
        ("--config-file theirs.yaml", "config_file"),
        ("--main_process_ip 203.0.113.5", "main_process_ip"),
    ],
)
def test_launch_words_that_reach_further_need_consent(kohyakit, preset, words, name) -> None:
    file = preset(extra_accelerate_launch_args=words)
    assert planned(kohyakit, file) == (1, {"needs-consent"} | codes_of(kohyakit, preset))
    assert "needs-consent" not in planned(kohyakit, file, "--set", f"trust={name}")[1]


def codes_of(kohyakit, preset) -> set[str]:
    return planned(kohyakit, preset("plain.json"))[1]


@pytest.mark.parametrize("words", ["evil.py", "--multi_gpu evil.py", "--num_processes 1 evil.py"])
def test_a_word_that_accelerate_would_run_is_refused(kohyakit, preset, words) -> None:
    code, codes = planned(kohyakit, preset(extra_accelerate_launch_args=words))
    assert (code, "stray-launch-word" in codes) == (1, True)


def test_beginnings_of_names_are_not_let_through(kohyakit, preset) -> None:
    code, codes = planned(kohyakit, preset(extra_accelerate_launch_args="--modul evil"))
    assert (code, "unknown-launch-word" in codes) == (1, True)


def test_usual_launch_words_pass(kohyakit, preset) -> None:
    words = "--num_cpu_threads_per_process=4 --same_network --dynamo_mode default"
    assert planned(kohyakit, preset(extra_accelerate_launch_args=words))[0] == 0


def test_a_script_with_a_flag_that_swallows_a_program(kohyakit, preset, tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_text("accelerate launch --enable_cpu_affinity evil.py train_network.py --network_dim 4 --seed 1\n")
    found = json.loads(kohyakit("validate", script, "--json").stdout)["files"][0]
    assert "stray-launch-word" in {problem["code"] for problem in found["problems"]}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("--log_tracker_config tracker.toml", "needs-consent"),
        ("--console_log_file /tmp/elsewhere.log", "needs-consent"),
        ("--output_dir /tmp/elsewhere", "needs-consent"),
        ("--logging_dir /tmp/elsewhere", "needs-consent"),
        ("--trust evil", "unknown-option"),
        ("--network_module evil.network", "untrusted-module"),
        ("--optimizer_type evil.Optimizer", "untrusted-module"),
        ("--optimizer_type torch.hub.load", "untrusted-module"),
        ("--lr_scheduler_type evil.Scheduler", "untrusted-module"),
        ("--dataset_class evil.Dataset", "unsupported-option"),
        ("--huggingface_repo_id evil/run", "needs-consent"),
        ("--resume_from_huggingface --resume evil/run/state", "needs-consent"),
        ("--output_name ../../.bashrc", "not-a-name"),
        ("--log_prefix ../..", "not-a-name"),
        ("--metadata_thumbnail /etc/hostname", "not-a-picture"),
    ],
)
def test_additional_parameters_that_need_consent(kohyakit, preset, files, tmp_path, words, code) -> None:
    file = preset(additional_parameters=words)
    before = files(tmp_path)
    found = kohyakit("launch", file, "--json")
    assert found.exit_code == 1
    assert code in {problem["code"] for problem in json.loads(found.stdout)["problems"]}
    assert files(tmp_path) == before


def test_what_they_override_is_shown(kohyakit, preset) -> None:
    shown = kohyakit("validate", preset(additional_parameters="--network_dim 64"), "--keys")
    assert "replaces the form's 4" in shown.stderr


def test_consent_is_the_command_lines_alone(kohyakit, tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('trust = ["evil"]\noverwrite = true\noptimizer_type = "evil.Optimizer"\nnetwork_dim = 4\n')
    found = json.loads(kohyakit("validate", file, "--json").stdout)["files"][0]
    asked = [problem["key"] for problem in found["problems"] if problem["code"] == "needs-consent"]
    assert sorted(asked) == ["overwrite", "trust"]


def test_a_log_inside_the_run_is_its_own(kohyakit, preset, tmp_path: Path) -> None:
    file = preset(additional_parameters=f"--console_log_file {tmp_path / 'out' / 'console.log'}")
    assert "needs-consent" not in planned(kohyakit, file)[1]


@pytest.mark.parametrize(
    "words",
    [
        "--dataset_class evil.Dataset",
        "--huggingface_repo_id evil/run",
        "--optimizer_type evil.Optimizer",
        "--config_file theirs.toml",
    ],
)
def test_sd_scripts_is_given_nothing_unasked_either(kohyakit, preset, words) -> None:
    file = preset(additional_parameters=words)
    assert kohyakit("launch", file, "--backend", "sd-scripts", "--print-command").exit_code == 1


def test_foreign_paths_are_reported_and_not_made(kohyakit, preset, files, tmp_path: Path) -> None:
    file = preset(output_dir="D:\\loras\\out")
    before = files(tmp_path)
    found = kohyakit("launch", file, "--json")
    assert "foreign-path" in {problem["code"] for problem in json.loads(found.stdout)["problems"]}
    assert files(tmp_path) == before


def holds_secret(text: str) -> bool:
    return TOKEN in text or KEY in text


SECRET_FORMS = {
    "keys": {"wandb_api_key": KEY, "huggingface_token": TOKEN},
    "free text": {"additional_parameters": f"--wandb_api_key {KEY} --training_comment={TOKEN}"},
    "launch words": {"extra_accelerate_launch_args": f"--aws_secret_access_key {KEY} --role {TOKEN}"},
    "a comment": {"training_comment": f"made with {TOKEN}", "wandb_run_name": TOKEN},
    "an unknown key": {"my_hf_token": TOKEN, "wandb_api_keys": KEY},
    "a wrong value": {"network_dim": TOKEN, "wandb_api_key": [KEY]},
}


@pytest.mark.parametrize("given", SECRET_FORMS.values(), ids=SECRET_FORMS)
def test_nothing_printed_holds_a_secret(kohyakit, preset, given, tmp_path: Path) -> None:
    file, plain = preset(**given), preset("plain.json")
    runs = [("validate", file, "--json"), ("validate", file, "--keys"), ("plan", file), ("plan", file, "--json")]
    runs += [
        ("diff", file, plain, "--all"),
        ("diff", plain, file, "--all", "--json"),
        ("launch", file, "--print-command"),
    ]
    runs += [("launch", file, "--print-command", "--backend", "sd-scripts", "--json")]
    runs += [("convert", file, "--to", name) for name in ("kohya-gui", "sd-scripts", "civitai", "args", "snapshot")]
    runs += [("convert", file, "--to", name, "--json") for name in ("kohya-gui", "sd-scripts", "civitai")]
    for words in runs:
        found = kohyakit(*words)
        assert not isinstance(found.exception, Exception) or isinstance(found.exception, SystemExit), words
        assert not holds_secret(found.stdout + found.stderr), words


@pytest.mark.parametrize("ending", ["toml", "sh", "civitai.json"])
def test_other_formats_keep_secrets_too(kohyakit, ending, tmp_path: Path) -> None:
    file = tmp_path / f"x.{ending}"
    texts = {
        "toml": f'wandb_api_key = "{KEY}"\nhuggingface_token = "{TOKEN}"\nnetwork_dim = 4\n'
        f'training_comment = "{TOKEN}"\n',
        "sh": f"accelerate launch train_network.py --network_dim 4 --wandb_api_key {KEY} --huggingface_token={TOKEN}\n",
        "civitai.json": json.dumps(
            {"unetLR": 1e-4, "clipSkip": 1, "networkDim": 4, "token": TOKEN, "wandb_api_key": KEY}
        ),
    }
    file.write_text(texts[ending])
    runs = [("validate", file, "--json"), ("validate", file, "--keys"), ("plan", file, "--json"), ("diff", file, file)]
    for words in [*runs, *(("convert", file, "--to", name) for name in ("kohya-gui", "sd-scripts", "args"))]:
        found = kohyakit(*words)
        assert not holds_secret(found.stdout + found.stderr), words


def test_nothing_written_holds_a_secret(kohyakit, preset, trainer, files, tmp_path: Path) -> None:
    file = preset(wandb_api_key=KEY, huggingface_token=TOKEN, training_comment=f"by {TOKEN}")
    assert kohyakit("launch", file).exit_code == 0
    written = files(tmp_path / "out")
    assert any(name.endswith("config.toml") for name in written)
    assert [name for name, data in written.items() if holds_secret(data.decode("utf-8", "replace"))] == []
    words, environment = trainer.starts[0]
    assert not holds_secret(" ".join(words))
    assert KEY in environment.values()


def test_a_lora_header_is_shown_without_its_secrets(kohyakit, lora, tmp_path: Path) -> None:
    file = lora(metadata={"ss_training_comment": f"x {TOKEN}", "kohyakit_config": json.dumps({"wandb_api_key": KEY})})
    out = tmp_path / "found.json"
    found = kohyakit("inspect", file, "--json", "--to", "kohya-gui", "-o", out)
    assert not holds_secret(found.stdout + found.stderr + out.read_text())


def test_no_shell_anywhere() -> None:
    root = Path(__file__).parents[2]
    sources = [path for top in ("launcher", "schemas", "trainer") for path in (root / top).rglob("*.py")]
    shells = ("shell=True", "os.system(", "os.popen(", "eval(", "exec(", "pickle.load")
    harmless = (".eval(", "literal_eval(", "def eval(")
    found = []
    for path in sources:
        text = path.read_text(encoding="utf-8")
        for word in harmless:
            text = text.replace(word, "")
        found += [f"{path.name}: {word}" for word in shells if word in text]
    assert found == []


@pytest.mark.parametrize("command", ["plan", "validate", "launch"])
def test_a_pickle_that_runs_code_needs_its_name(kohyakit, preset, trainer, tmp_path: Path, command) -> None:
    (tmp_path / "old model.ckpt").write_bytes(pickle.dumps({"state_dict": {}, "where": print}, 2))
    file = preset(pretrained_model_name_or_path=str(tmp_path / "old model.ckpt"))
    refused = kohyakit(command, file)
    assert refused.exit_code == 1
    assert "holds more than tensors (__builtin__.print): opening it can run any code" in refused.stderr
    assert "--trust 'old model.ckpt'" in refused.stderr
    assert kohyakit(command, file, "--trust", "model.ckpt").exit_code == 1
    assert kohyakit(command, file, "--trust", "old model.ckpt").exit_code == 0


def test_a_file_gives_the_trainer_no_consent(tmp_path: Path, capsys) -> None:
    from trainer.__main__ import main

    (tmp_path / "a.toml").write_text('network_dim = 4\ntrust = ["evil"]\n')
    assert main(["--config_file", str(tmp_path / "a.toml")]) == 1
    said = capsys.readouterr().err
    assert "a.toml\n  error[needs-consent]: trust: is not a file's to give" in said
    assert '    2 | trust = ["evil"]\n      |         ^^^^^^^^\n    fix: ' in said
