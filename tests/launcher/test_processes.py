from __future__ import annotations

import json

from launcher.check.machine import Machine
from launcher.check.plan import make_plan
from launcher.check.processes import load_of
from launcher.check.resolve import resolve
from launcher.run.command import LaunchOptions


def made(preset, processes: int, keep: bool = False, **changes):
    options = LaunchOptions(processes=processes, keep_samples=keep)
    return make_plan(resolve(str(preset(**changes))), Machine(), options)


def test_two_processes_see_twice_as_much_in_as_many_steps(preset) -> None:
    one, two = made(preset, 1), made(preset, 2)
    single, double = load_of(one.checked, one.steps), load_of(two.checked, two.steps)
    assert (single.device_batch, single.global_batch, single.steps, single.samples) == (2, 2, 12, 24)
    assert (double.device_batch, double.global_batch, double.steps, double.samples) == (2, 4, 12, 48)


def test_keeping_samples_shortens_everything_counted_in_steps(preset) -> None:
    plan = made(preset, 2, keep=True, save_every_n_steps=4, lr_scheduler="cosine", lr_warmup_steps=4)
    assert (plan.config.max_train_steps, plan.config.save_every_n_steps, plan.config.lr_warmup_steps) == (6, 2, 2)
    assert load_of(plan.checked, plan.steps).samples == 24
    assert "samples-kept" in [problem.code for problem in plan.problems]


def test_epochs_keep_the_samples_by_themselves(preset) -> None:
    plan = made(preset, 2, keep=True, max_train_epochs=2)
    assert (plan.config.max_train_epochs, load_of(plan.checked, plan.steps).samples) == (2, 24)


def test_the_last_epoch_is_counted_as_far_as_it_goes(preset) -> None:
    plan = made(preset, 1, max_train_steps=8)  # six batches of two an epoch
    assert load_of(plan.checked, plan.steps).samples == 16


def test_accumulation_counts_behind_one_step(preset) -> None:
    plan = made(preset, 2, gradient_accumulation_steps=3)
    assert load_of(plan.checked, plan.steps).global_batch == 2 * 3 * 2


def test_the_plan_prints_the_table(kohyakit, preset) -> None:
    text = kohyakit("plan", preset(), "--processes", "2").stdout
    for words in (["images in one step", "2", "4"], ["images seen", "24", "48"], ["learning rate", "0.0001"]):
        assert any(all(word in line for word in words) for line in text.splitlines()), words
    assert "--keep-samples" in text
    found = json.loads(kohyakit("plan", preset(), "--processes", "2", "--keep-samples", "--json").stdout)
    assert (found["load"]["samples"], found["steps"]["total"]) == (24, 6)


def test_a_launch_keeps_samples_too(kohyakit, preset, trainer, tmp_path) -> None:
    assert kohyakit("launch", preset(), "--processes", "2", "--keep-samples").exit_code == 0
    assert "max_train_steps = 6" in (tmp_path / "out" / "frog.run" / "config.toml").read_text()
