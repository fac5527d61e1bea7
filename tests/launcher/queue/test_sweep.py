"""A sweep over pretended runs: what is tried, what is stopped early, what a kill leaves, and whose storage it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.queue.add import Wish
from launcher.queue.wishes import pause_one
from launcher.sweep import page
from launcher.sweep import study as studies
from launcher.sweep.setup import Setup, set_up
from launcher.sweep.space import MEASURE, OURS, WEIGHTED, Vary, combinations, read_space
from launcher.sweep.sweep import Sweep, resumed, work
from schemas.config import table
from schemas.problems import ConfigError

VARY = ("network_dim=4,8", "unet_lr=1e-4,5e-5")


@pytest.fixture
def setup(preset, photos) -> Callable[..., Setup]:
    """A sweep of the ready preset."""

    def make(*vary: str, sets: tuple[str, ...] = (), **words: Any) -> Setup:
        given = {"trials": None, "storage": None, **words}
        return set_up(Wish(str(preset()), sets), vary or VARY, given["trials"], given["storage"])

    return make


@pytest.fixture
def begin(queue, pretended, told, work) -> Callable[..., tuple[Sweep, Any]]:
    """The sweep and the runner that works for it."""

    def make(given: Setup, **words: Any) -> tuple[Sweep, Any]:
        study = studies.open_study(given)
        return Sweep(resumed(given, study), study, queue, told, **words), work()

    return make


def measure(run: Path, losses: Mapping[int, float]) -> None:
    lines = [json.dumps({"step": 3 * epoch, "epoch": epoch, "loss": loss}) for epoch, loss in losses.items()]
    (run / "validation.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def train(pretended, queue, losses: Mapping[int, float], code: int = 0) -> None:
    """The run under way leaves its measurements and ends."""
    (job,) = [job for job in queue.jobs() if job.state == "running"]
    pretended.last.begin(job.run)
    measure(job.run, losses)
    pretended.last.end(code, job.run)


# What is varied


def test_choices_and_ranges_are_read() -> None:
    space = read_space(["network_dim=8,16", "unet_lr=1e-5..1e-3", "network_alpha=1..4"])
    assert space[0] == Vary("network_dim", ("8", "16"))
    assert (space[1].low, space[1].high, space[1].logarithmic) == (1e-5, 1e-3, True)
    assert (space[2].whole, space[2].logarithmic) == (False, False)
    assert combinations(space) is None
    assert combinations(read_space(VARY)) == [
        {"network_dim": "4", "unet_lr": "1e-4"}, {"network_dim": "4", "unet_lr": "5e-5"},
        {"network_dim": "8", "unet_lr": "1e-4"}, {"network_dim": "8", "unet_lr": "5e-5"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("netwrk_dim=8,16", "--vary network_dim=8,16"),
        ("network_dim=8", "needs two values or more"),
        ("network_dim=8,8", "names a value twice"),
        ("network_dim=8,x", "whole number"),
        ("network_dim", "needs values"),
        ("unet_lr=0,0001", "write 0.0001"),
        ("unet_lr=1e-3..1e-5", "up to a larger one"),
        ("output_name=a,b", "set by the sweep itself"),
        ("validation_split=0.1,0.2", "what the runs are measured by"),
    ],
)
def test_what_cannot_be_varied_is_told(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        read_space([word])


def test_the_options_that_the_measure_hangs_on_are_options() -> None:
    assert {*MEASURE, *OURS, *WEIGHTED} <= set(table())


def test_every_value_is_planned_before_anything_is_written(kohyakit, preset, tmp_path: Path) -> None:
    vary = ("--vary", "network_dim=4,8", "--vary", "train_batch_size=2,0")
    found = kohyakit("sweep", preset(), *vary, "--queue", tmp_path / "q")
    assert (found.exit_code, "train_batch_size" in found.stderr) == (1, True)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "q").exists()


def test_images_are_held_out_the_same_in_every_run(setup) -> None:
    sets = setup(sets=("seed=",)).sets
    assert (sets["validation_split"], sets["validate_every_n_epochs"]) == ("0.25", "1")
    assert sets["seed"] == sets["validation_seed"]
    own = setup(sets=("validation_split=0.5", "validation_seed=3")).sets
    assert {"validation_split", "validation_seed", "seed"}.isdisjoint(own)


def test_a_sweep_without_held_out_images_is_refused(setup, photos) -> None:
    with pytest.raises(ConfigError, match="holds no image out"):
        setup(sets=("validation_split=0.01",))


def test_a_range_needs_a_number_of_trials(setup) -> None:
    with pytest.raises(ConfigError, match="is needed where a range is varied"):
        setup("unet_lr=1e-5..1e-3")
    assert setup("unet_lr=1e-5..1e-3", trials=5).trials == 5
    assert setup(trials=99).trials == 4
    assert setup(trials=3).grid is None


# The runs


def test_a_grid_is_tried_in_its_order_and_the_page_ranks_it(setup, begin, queue, pretended, tmp_path: Path) -> None:
    given = setup()
    sweep, runner = begin(given)
    for loss in (0.5, 0.3, 0.4, 0.6):
        assert sweep.step()
        runner.step()
        assert "--set" in pretended.last.words
        train(pretended, queue, {1: loss + 0.1, 2: loss})
        runner.step()
    assert sweep.step() is False
    rows = studies.rows(given, sweep.study)
    assert [row.values for row in rows] == combinations(given.space)
    assert [(row.loss, row.epoch, row.state) for row in rows][:2] == [(0.5, 2, "done"), (0.3, 2, "done")]
    assert [job.state for job in queue.jobs()] == ["done"] * 4
    assert [job.run.parent for job in queue.jobs()] == [tmp_path / "out" / "frog.sweep"] * 4
    text = page.page(given, rows)
    assert "--set network_dim=4 --set unet_lr=5e-5" in text
    assert [row.number for row in page.ranking(rows)] == [1, 2, 0, 3]
    assert text.count("<title>trial ") == 4


def test_a_run_that_falls_behind_is_stopped_and_keeps_its_state(setup, begin, queue, pretended, told) -> None:
    sweep, runner = begin(setup())
    for _ in range(3):
        sweep.step()
        runner.step()
        train(pretended, queue, {1: 0.5, 2: 0.4, 3: 0.3})
        runner.step()
    sweep.step()
    runner.step()
    (job,) = [job for job in queue.jobs() if job.state == "running"]
    pretended.last.begin(job.run)
    measure(job.run, {1: 0.9, 2: 0.9})
    sweep.step()
    runner.step()
    assert pretended.last.signals == 1
    assert "trial 3: stopped early after epoch 2" in told.text
    pretended.last.end(130, job.run)
    runner.step()
    assert sweep.step() is False
    assert studies.rows(sweep.setup, sweep.study)[3].state == "stopped early"
    assert list(job.run.glob("state-*"))
    assert job.id not in [other.id for other in queue.jobs()]


def test_a_killed_sweep_goes_on_with_the_run_that_was_under_way(setup, begin, queue, pretended) -> None:
    sweep, runner = begin(setup(sets=("seed=",)))
    sweep.step()
    runner.step()
    (job,) = queue.jobs()
    pretended.last.begin(job.run)
    pretended.last.returncode = -9
    again, runner = begin(setup(sets=("seed=",)))  # draws another seed, and takes the one that was kept
    assert again.setup.sets == sweep.setup.sets
    again.step()
    runner.step()
    assert pretended.last.words[3] == "resume"
    assert len(queue.jobs()) == 1
    train(pretended, queue, {1: 0.4})
    runner.step()
    again.step()
    assert [row.state for row in studies.rows(again.setup, again.study)] == ["done", "open"]


def test_a_trial_that_was_asked_for_and_never_queued_is_queued(setup, begin, queue) -> None:
    given = setup()
    study = studies.open_study(given)
    study.ask(studies.distributions(given))
    sweep, _ = begin(given)
    sweep.step()
    assert [job.owner["trial"] for job in queue.jobs()] == [0]


def test_failed_removed_and_unmeasured_runs_are_told_and_the_rest_goes_on(setup, begin, queue, pretended) -> None:
    sweep, runner = begin(setup())
    sweep.step()
    runner.step()
    pretended.last.end(3, cause="the loss or a gradient became NaN or infinite")
    runner.step()
    sweep.step()
    queue.remove(2)
    sweep.step()
    runner.step()
    train(pretended, queue, {})
    runner.step()
    sweep.step()
    runner.step()
    train(pretended, queue, {1: float("nan"), 2: 0.2})
    runner.step()
    assert sweep.step() is False
    rows = studies.rows(sweep.setup, sweep.study)
    assert [row.state for row in rows] == ["failed", "failed", "failed", "done"]
    assert "became NaN" in str(rows[0].reason)
    assert rows[1].reason == "its run was removed from the queue"
    assert rows[2].reason == "its run measured no held-out loss"
    assert "became NaN" in page.page(sweep.setup, rows)


def test_a_run_that_a_person_paused_is_left_and_named(setup, begin, queue, pretended, told) -> None:
    sweep, runner = begin(setup(), parallel=4)
    sweep.step()
    pause_one(queue, 2)
    for _ in range(3):
        runner.step()
        train(pretended, queue, {1: 0.5})
    assert work(sweep, runner, lambda: 0) == 3
    assert told.text.count("trial 1: queued run 2 is paused") == 1


def test_one_sweep_command_from_its_words_to_its_document(kohyakit, preset, pretended, queue, monkeypatch) -> None:
    """Every run ends by itself, as soon as it is started."""

    def start(words, folder, cwd, environment):
        child = type(pretended).start(pretended, words, folder, cwd, environment)
        run = next(Path(job.run_folder) for job in queue.jobs() if queue.folder(job.id) == folder)
        child.begin(run)
        measure(run, {1: 0.5, 2: 0.25})
        child.end(0, run)
        return child

    monkeypatch.setattr("launcher.queue.runner._child", start)
    monkeypatch.setattr("launcher.sweep.sweep.POLL", 0)
    found = kohyakit("sweep", preset(), "--vary", "network_dim=4,8", "--queue", queue.path, "--json")
    assert found.exit_code == 0, found.stderr
    document = json.loads(found.stdout)
    assert (document["best"], [trial["held_out"] for trial in document["trials"]]) == (0, [0.25, 0.25])
    assert Path(document["page"]).read_text().startswith(page.MARK)
    again = json.loads(kohyakit("sweep", preset(), "--vary", "network_dim=4,8", "--queue", queue.path, "--json").stdout)
    assert (again["trials"], len(pretended.children)) == (document["trials"], 2)


# The storage


def test_the_storage_of_another_sweep_is_named_and_left_alone(setup, tmp_path: Path, preset) -> None:
    storage = tmp_path / "kept.db"
    studies.open_study(setup(storage=storage))
    with pytest.raises(ConfigError, match="belongs to another sweep: vary was") as refused:
        studies.open_study(setup("network_dim=4,8", storage=storage))
    assert "--storage NEW.db" in str(refused.value)
    given = setup(storage=storage)
    preset(network_dim=5)
    with pytest.raises(ConfigError, match=r"frog\.json was edited since"):
        studies.open_study(given)
    assert len(studies.open_study(setup(storage=storage)).trials) == 4


@pytest.mark.parametrize("content", [b"a diary", b"SQLite format 3\0 cut off"])
def test_a_file_that_is_no_storage_is_named_and_left_alone(setup, tmp_path: Path, content: bytes) -> None:
    storage = tmp_path / "notes.db"
    storage.write_bytes(content)
    with pytest.raises(ConfigError, match=r"notes\.db.*cannot be the storage of a sweep"):
        studies.open_study(setup(storage=storage))
    assert storage.read_bytes() == content


def test_a_study_of_another_program_is_named_and_left_alone(setup, tmp_path: Path) -> None:
    import optuna

    storage = tmp_path / "theirs.db"
    theirs = optuna.create_study(storage=f"sqlite:///{storage}", study_name="kohyakit")
    theirs.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(ConfigError, match="holds trials of another program"):
        studies.open_study(setup(storage=storage))


def test_without_optuna_the_line_that_installs_it_is_told(kohyakit, preset, monkeypatch) -> None:
    real = __import__("importlib.util").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "optuna" else real(name, *more))
    found = kohyakit("sweep", preset(), "--vary", "network_dim=4,8")
    assert (found.exit_code, 'pip install "kohyakit[sweep]"' in found.stderr) == (1, True)


# The page


def test_the_page_escapes_and_shows_the_previews_of_the_best(setup, tmp_path: Path) -> None:
    given = setup()
    run = tmp_path / "out" / "frog.sweep" / "frog-t000.run"
    run.mkdir(parents=True)
    (run / "config.toml").write_text('output_name = "frog-t000"\nmax_train_steps = 3\n', encoding="utf-8")
    (run / "log.jsonl").write_text('{"step": 3, "epoch": 1, "loss": 0.5, "lr": {"unet": 1e-4}, "seconds": 1}\n')
    (run.parent / "sample").mkdir()
    Image.new("RGB", (32, 32)).save(run.parent / "sample" / "frog-t000_000003_00_20260101000000_1.png")
    values = {"network_dim": "4", "unet_lr": "1e-4"}
    rows = [
        studies.Row(0, values, "done", 0.4, 1, {1: 0.4}, str(run)),
        studies.Row(1, {**values, "network_dim": "8"}, "done", 0.5, 2, {1: 0.6, 2: 0.5}, str(tmp_path / "gone.run")),
        studies.Row(2, values, "failed", reason="<script>alert(1)</script>"),
    ]
    text = page.page(given, rows)
    assert "<script>" not in text
    assert "data:image/jpeg" in text
    assert "20.0%" not in page.page(given, rows[:1])
    assert "25.0% below trial 1" in text


def test_an_axis_by_powers_by_size_and_by_words() -> None:
    powers = page._axis("unet_lr", ["1e-5", "1e-4", "1e-3"])
    assert [round(powers.place(value), 6) for value in ("1e-5", "1e-4", "1e-3")] == [0, 0.5, 1]
    sizes = page._axis("network_dim", ["4", "8", "6"])
    assert [sizes.place(value) for value in ("4", "6", "8")] == [0, 0.5, 1]
    names = page._axis("optimizer_type", ["AdamW", "Lion"])
    assert [names.place(value) for value in ("AdamW", "Lion")] == [0, 1]
    same = page._axis("network_dim", ["4", "4"])
    assert same.place("4") == 0
