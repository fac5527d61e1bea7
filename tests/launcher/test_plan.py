from __future__ import annotations

import json
import math
from pathlib import Path

from launcher.check.machine import Gpu, Machine, this_machine
from launcher.check.plan import make_plan
from launcher.check.resolve import resolve
from launcher.run.command import LaunchOptions

KEYS = {
    "family",
    "arguments",
    "command",
    "accelerate",
    "dataset",
    "steps",
    "learning_rate",
    "disk_bytes",
    "memory",
    "time",
    "adapted",
    "problems",
}


def plan_of(kohyakit, *words) -> dict:
    return json.loads(kohyakit("plan", "--json", *words).stdout)


def test_the_document_has_the_promised_keys(kohyakit, preset) -> None:
    found = kohyakit("plan", preset(), "--json")
    document = json.loads(found.stdout)
    assert (found.exit_code, set(document)) == (0, KEYS)
    assert document["arguments"]["network_dim"] == {"value": 4, "origin": "file", "from": "network_dim"}
    assert document["command"][-1].endswith("out/frog.run/config.toml")


def test_nothing_at_all_is_written(kohyakit, preset, tmp_path: Path, files) -> None:
    file = preset(sample_prompts="a frog --w 64", sample_every_n_epochs=1)
    before = files(tmp_path)
    kohyakit("plan", file)
    kohyakit("plan", file, "--json", "--processes", "2")
    assert files(tmp_path) == before


def test_data_and_buckets(kohyakit, preset) -> None:
    data = plan_of(kohyakit, preset())["dataset"]
    assert (data["images"], data["repeats_total"], data["without_caption"]) == (4, 12, 0)
    assert data["buckets"] == [{"resolution": [64, 64], "images": 12}]
    assert [(subset["repeats"], subset["images"]) for subset in data["subsets"]] == [(3, 4)]


def test_steps_saves_and_curve(kohyakit, preset) -> None:
    document = plan_of(kohyakit, preset())
    steps = document["steps"]
    assert (steps["batches_per_epoch"], steps["epochs"], steps["total"], steps["warmup"]) == (6, 2, 12, 0)
    assert [(save["step"], save["file"]) for save in steps["saves"]] == [
        (6, "frog-000001.safetensors"),
        (12, "frog.safetensors"),
    ]
    assert document["learning_rate"][0] == [0, 1e-4]
    assert document["learning_rate"][-1][0] == 12


def test_processes_share_the_batches(kohyakit, preset) -> None:
    steps = plan_of(kohyakit, preset(), "--processes", "4", "--set", "max_train_epochs=2")["steps"]
    assert (steps["batches_per_epoch"], steps["total"]) == (math.ceil(6 / 4), 4)
    table = kohyakit("plan", preset(), "--processes", "2").stdout
    assert "batches per epoch and process" in table


def test_previews(kohyakit, preset) -> None:
    document = plan_of(kohyakit, preset(sample_prompts="a frog", sample_every_n_epochs=1))
    assert document["steps"]["previews"] == [6, 12]
    assert document["arguments"]["sample_prompts"]["origin"] == "computed"


def test_what_the_machine_cannot_do(kohyakit, preset) -> None:
    file = preset(mixed_precision="fp16")
    (change,) = plan_of(kohyakit, file)["adapted"]
    assert (change["argument"], change["from"], change["to"]) == ("mixed_precision", "fp16", "no")
    refused = kohyakit("plan", file, "--strict", "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["problems"][0]["code"]) == (1, "not-on-this-machine")


def test_problems_still_give_a_document(kohyakit, preset) -> None:
    found = kohyakit("plan", preset(train_data_dir="/content/img"), "--json")
    document = json.loads(found.stdout)
    assert (found.exit_code, set(document), document["steps"], document["dataset"]) == (1, KEYS, None, None)
    assert document["problems"][0]["code"] == "foreign-path"
    assert "train_data_dir" in found.stderr


def test_secrets_are_nowhere(kohyakit, preset) -> None:
    found = kohyakit("plan", preset(wandb_api_key="f" * 40, huggingface_token="hf_" + "a" * 30), "--json")
    assert "f" * 40 not in found.output
    assert "hf_aaa" not in found.output


def test_the_derivation_can_be_followed(kohyakit, preset) -> None:
    text = kohyakit("plan", preset(gradient_accumulation_steps=2, max_train_epochs=2)).stdout
    assert "12 images in batches of 2, bucket by bucket = 6 batches an epoch" in text
    assert "/ 2 accumulated = 3 steps an epoch x 2 epochs = 6 steps, set by max_train_epochs" in text


def test_less_memory_is_a_list_of_changes(preset, full_size) -> None:
    machine = Machine(gpus=(Gpu("card", 80 * 2**30),), packages=this_machine().packages)
    file = preset(gradient_checkpointing=False, pretrained_model_name_or_path=full_size)
    plan = make_plan(resolve(str(file)), machine, vram=2)
    assert plan.fits
    assert plan.config.gradient_checkpointing
    assert {"argument", "from", "to", "saves_bytes", "cost", "changes_result"} <= set(plan.fits[0])
    assert plan.checked.resolved.argument_table()["gradient_checkpointing"]["origin"] == "adapted"


def test_too_little_gpu_memory_is_warned_of(preset, full_size) -> None:
    machine = Machine(gpus=(Gpu("card", 2**30),))
    plan = make_plan(resolve(str(preset(pretrained_model_name_or_path=full_size))), machine)
    assert "gpu-memory" in [problem.code for problem in plan.problems]


def test_memory_follows_the_checkpoint_at_hand(preset, full_size) -> None:
    small = make_plan(resolve(str(preset())), Machine()).memory
    large = make_plan(resolve(str(preset(pretrained_model_name_or_path=full_size))), Machine()).memory
    assert small.parts["unet"] < 1e6 < 3.4e9 < large.parts["unet"]
    assert small.host_bytes < 2.4e9


def test_more_processes_than_gpus(preset) -> None:
    plan = make_plan(resolve(str(preset())), Machine(gpus=(Gpu("card"),)), LaunchOptions(processes=3))
    assert "too-few-gpus" in [problem.code for problem in plan.problems]


def test_a_port_is_chosen_for_several_processes(preset) -> None:
    plan = make_plan(resolve(str(preset())), Machine(cores=4), LaunchOptions(processes=2))
    assert plan.launch.main_process_port


def test_several_machines_need_an_address(preset) -> None:
    plan = make_plan(resolve(str(preset())), Machine(), LaunchOptions(processes=2, machines=2))
    assert "no-main-address" in [problem.code for problem in plan.problems]


def test_earlier_results_are_named(kohyakit, preset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "frog.safetensors").write_text("")
    found = kohyakit("plan", preset())
    assert found.exit_code == 1
    assert "frog.safetensors" in found.stderr
    assert kohyakit("plan", preset(), "--set", "overwrite=true").exit_code == 0


def test_many_findings_of_one_kind_are_one_line_and_all_in_the_document(kohyakit, preset, tmp_path: Path) -> None:
    data = tmp_path / "data.toml"
    data.write_text(
        "".join(f'[[datasets]]\nbatch_size = 0\n[[datasets.subsets]]\nimage_dir = "{n}"\n' for n in range(6))
    )
    for command, file in (("validate", data), ("plan", preset(dataset_config=str(data), train_data_dir=""))):
        said = kohyakit(command, file).stderr
        assert said.count("batch_size: must be") == 1, said
        assert "and 5 more like it (--json has all)" in said
        document = json.loads(kohyakit(command, file, "--json").stdout)
        found = document["problems"] if command == "plan" else document["files"][0]["problems"]
        assert sum("batch_size" in (one["key"] or "") for one in found) == 6
