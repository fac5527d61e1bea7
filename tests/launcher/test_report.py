"""`kohyakit report`: hand-made run folders, no training."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from launcher.report.curves import (
    Curve,
    chart,
    moving_average,
    thinned,
    ticks,
)
from launcher.report.facts import (
    Preview,
    read_log,
    read_run,
    shareable,
)
from launcher.report.sheet import (
    Moment,
    embed,
    fitting,
    moments,
)
from launcher.run.resume import find
from tests.launcher.conftest import add_state

CONFIG = """
pretrained_model_name_or_path = "/home/joan/models/base.safetensors"
train_data_dir = "PHOTOS"
output_name = "frog"
learning_rate = 0.001
unet_lr = 0.001
text_encoder_lr = [ 0.0001,]
network_dim = 4
network_alpha = 2.0
max_train_epochs = 2
save_every_n_epochs = 1
sample_prompts = "/home/joan/out/frog.run/prompt.txt"
training_comment = "<script>alert(1)</script> in /home/joan/secret with hf_abcdefghijklmnopqrstuv"
"""


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.words += data


@pytest.fixture
def made(tmp_path: Path, lora):
    """out/frog.run of 40 steps in 2 epochs over 4 pictures of 50 repeats; two files, two prompts with previews."""

    def make(losses=None, *, config="", rates=(1e-4, 1e-3), files=True, images=None, **changes) -> Path:
        out = tmp_path / "out"
        folder = out / "frog.run"
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(CONFIG.replace("PHOTOS", str(images or "/home/joan/photos")) + config)
        (folder / "prompt.txt").write_text("a <b>frog</b> --d 1\na toad --d 2\n")
        start = {"begin": "2026-01-31T12:00:00+01:00", "end": "2026-01-31T13:00:00+01:00", "exit": 0, "mode": "launch"}
        (folder / "run.json").write_text(json.dumps({
            "file": "/home/joan/frog.json", "format": "kohya-gui", "family": "sd15",
            "origins": {"learning_rate": {"value": 0.001, "origin": "--set", "from": None},
                        "network_dim": {"value": 4, "origin": "file", "from": "dim_of_old"}},
            "adapted": [{"argument": "mixed_precision", "from": "fp16", "to": "no", "why": "no GPU here"}],
            "steps": {"updates_per_epoch": 20, "total": 40}, "versions": {"torch": "2.9"},
            "dataset": {"images": 4, "repeats": 200}, "starts": [start | changes.pop("start", {})], **changes,
        }))  # fmt: skip
        losses = [0.1 + 0.01 * (step % 3) for step in range(40)] if losses is None else losses
        with (folder / "log.jsonl").open("w") as log:
            for step, loss in enumerate(losses, start=1):
                lr = {"textencoder": rates[0], "unet": rates[1]}
                entry = {
                    "step": step,
                    "epoch": (step + 19) // 20,
                    "loss": loss,
                    "lr": lr,
                    "seconds": 1,
                    "memory": 2**30,
                }
                log.write(json.dumps(entry) + "\n")
        if files:
            lora("out/frog-000001.safetensors", metadata={"ss_steps": "20", "ss_epoch": "1"})
            lora("out/frog.safetensors", metadata={"ss_steps": "40", "ss_epoch": "2"})
            (out / "sample").mkdir()
            for epoch, index in ((1, 0), (1, 1), (2, 0), (2, 1)):
                name = f"frog_e{epoch:06d}_{index:02d}_2026013112{epoch}000_{index + 1}.png"
                Image.new("RGB", (640, 320), (90 * epoch, 30, 30)).save(out / "sample" / name)
        return folder

    return make


@pytest.fixture
def codes(kohyakit):
    """Codes of the suggestions about a run."""

    def ask(folder: Path) -> list[str]:
        return [said["code"] for said in json.loads(kohyakit("report", folder, "--json").stdout)["suggestions"]]

    return ask


def test_the_page_stands_alone(kohyakit, made) -> None:
    folder = made()
    found = kohyakit("report", folder)
    assert (found.exit_code, found.stdout.strip()) == (0, str(folder / "report.html"))
    page = Page((folder / "report.html").read_text())
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name in ("src", "href", "srcset")]
    assert len(links) == 4
    assert all(link.startswith("data:image/jpeg;base64,") for link in links)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object"}
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


def test_what_the_page_says(kohyakit, made) -> None:
    folder = made()
    kohyakit("report", folder)
    words = Page((folder / "report.html").read_text()).words
    for said in (
        "file: dim_of_old",
        "no GPU here",
        "torch",
        "epoch 2, step 40",
        "From frog.json",
        "2026-01-31 12:00:00",
    ):
        assert said in words


def held_out(folder: Path, *losses: float) -> None:
    lines = [json.dumps({"step": 20 * number, "epoch": number, "loss": one}) for number, one in enumerate(losses, 1)]
    (folder / "validation.jsonl").write_text("\n".join([*lines, "half a li"]))


def test_the_loss_on_held_out_images_is_on_the_page(kohyakit, made) -> None:
    folder = made()
    held_out(folder, 0.25, 0.75)
    found = json.loads(kohyakit("report", folder, "--json").stdout)
    assert found["held_out"] == [{"step": 20, "loss": 0.25}, {"step": 40, "loss": 0.75}]
    words = Page((folder / "report.html").read_text()).words
    assert "held-out images" in words
    assert "held-out loss then" in words
    assert "lowest after step 20 (0.25), and rises then" in words
    held_out(folder, 0.75, 0.25)
    kohyakit("report", folder)
    assert "lowest after step 40 (0.25), and has not risen" in Page((folder / "report.html").read_text()).words


def test_without_held_out_images_the_page_does_not_speak_of_them(kohyakit, made) -> None:
    folder = made()
    assert json.loads(kohyakit("report", folder, "--json").stdout)["held_out"] == []
    assert "held" not in Page((folder / "report.html").read_text()).words


def test_the_users_text_is_escaped_and_nothing_private_is_shown(kohyakit, made) -> None:
    folder = made()
    kohyakit("report", folder)
    text = (folder / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; in ~/secret with ***" in text
    assert "a &lt;b&gt;frog&lt;/b&gt;" in text
    assert "joan" not in text
    assert "hf_abc" not in text
    assert str(folder.parent.parent) not in text


def test_every_path_to_a_run_makes_its_page(kohyakit, made) -> None:
    folder = made()
    for path in (folder.parent, folder.parent / "frog-000001.safetensors"):
        assert kohyakit("report", path).stdout.strip() == str(folder / "report.html")


def test_json_is_one_document(kohyakit, made) -> None:
    found = json.loads(kohyakit("report", made(), "--json").stdout)
    assert (found["ok"], found["state"], found["looks"]) == (True, "finished", 100.0)
    assert found["steps"] == {"last": 40, "total": 40, "epoch": 2}
    assert [(Path(entry["file"]).name, entry["step"]) for entry in found["files"]] == [
        ("frog-000001.safetensors", 20),
        ("frog.safetensors", 40),
    ]
    assert found["previews"]["embedded"] == 4


def test_files_stand_beside_the_previews_of_their_moment(made) -> None:
    folder = made()
    columns = moments(read_run(find(str(folder)), "frog"))
    assert [column.title for column in columns] == ["epoch 1, step 20", "epoch 2, step 40"]
    assert [[copy.path.name for copy in column.copies] for column in columns] == [
        ["frog-000001.safetensors"],
        ["frog.safetensors"],
    ]
    assert all(sorted(column.previews) == [0, 1] for column in columns)


def test_where_the_files_work_is_said(made, kohyakit) -> None:
    folder = made(config='network_module = "lycoris.kohya"\nnetwork_args = ["algo=locon", "dora_wd=True"]\n')
    assert kohyakit("report", folder).exit_code == 0
    words = Page((folder / "report.html").read_text(encoding="utf-8")).words
    assert "wrong in A1111, InvokeAI" in words


def test_previews_of_another_run_of_the_name_stay_out(made) -> None:
    folder = made(start={"end": "2026-01-31T12:15:00+01:00"})
    assert [picture.epoch for picture in read_run(find(str(folder)), "frog").previews] == [1, 1]


def test_a_killed_run_ends_where_the_next_of_its_name_begins(made) -> None:
    folder = made(start={"end": None, "exit": None})
    other = folder.with_name("frog-v1.run")
    other.mkdir()
    (other / "run.json").write_text('{"starts": [{"begin": "2026-01-31T12:15:00+01:00"}]}')
    assert [picture.epoch for picture in read_run(find(str(folder)), "frog").previews] == [1, 1]


def test_of_a_preview_made_twice_the_newer_counts(made) -> None:
    folder = made()
    again = folder.parent / "sample" / "frog_e000001_00_20260131125900_1.png"
    Image.new("RGB", (8, 8)).save(again)
    shown = read_run(find(str(folder)), "frog").previews
    assert [picture.path.name for picture in shown if (picture.epoch, picture.index) == (1, 0)] == [again.name]


def test_an_older_report_is_replaced_and_nothing_else(kohyakit, made, tmp_path: Path) -> None:
    folder = made()
    assert [kohyakit("report", folder).exit_code for _ in range(2)] == [0, 0]
    mine = tmp_path / "mine.html"
    mine.write_text("mine")
    assert kohyakit("report", folder, "-o", mine).exit_code == 1
    assert mine.read_text() == "mine"


def test_no_log_yet(kohyakit, made, files) -> None:
    folder = made([])
    before = files(folder)
    found = kohyakit("report", folder, "--json")
    assert (found.exit_code, json.loads(found.stdout)["problems"][0]["code"]) == (1, "no-log")
    assert files(folder) == before


def test_a_lora_alone_has_no_run(kohyakit, lora) -> None:
    found = kohyakit("report", lora(), "--json")
    assert (found.exit_code, json.loads(found.stdout)["problems"][0]["code"]) == (1, "no-run")


@pytest.mark.parametrize(
    ("losses", "changes", "code"),
    [
        (None, {}, "nothing"),
        ([1 - step / 50 for step in range(40)], {}, "continue"),
        ([0.1 + step / 50 for step in range(40)], {}, "rising"),
        (None, {"dataset": {"images": 4, "repeats": 80}}, "continue"),
        (None, {"dataset": {"images": 4, "repeats": 2000}}, "too-long"),
        (None, {"rates": (1e-3, 1e-3)}, "same-rates"),
        ([0.1] * 30 + [float("nan")], {}, "numbers-lost"),
        ([0.1] * 30, {"start": {"exit": 130}}, "cut-off"),
        ([0.1] * 30, {"start": {"exit": None, "end": None}}, "cut-off"),
    ],
)
def test_each_rule_speaks_alone(made, codes, losses, changes, code) -> None:
    assert codes(made(losses, **changes)) == [code]


@pytest.mark.parametrize(("up", "code"), [(0.0, "hardly-moved"), (float("nan"), "broken-weights")])
def test_weights_that_are_not_sound(made, codes, lora, up, code) -> None:
    folder = made()
    lora("out/frog.safetensors", up=up, metadata={"ss_steps": "40", "ss_epoch": "2"})
    assert codes(folder) == [code]


def test_a_trainer_that_stopped_itself_is_not_resumed(made, kohyakit, lora) -> None:
    folder = made([0.1] * 30, start={"exit": 3})
    lora("out/frog-step00000030.safetensors")
    said = json.loads(kohyakit("report", folder, "--json").stdout)["suggestions"]
    assert [one["code"] for one in said] == ["numbers-lost"]
    assert said[0]["command"][1:5] == ["resume", str(folder.parent / "frog-step00000030.safetensors"), "--epochs", "1"]
    assert "text_encoder_lr=5e-05" in said[0]["command"]


def test_a_state_is_resumed_from(made, kohyakit) -> None:
    folder = made([0.1] * 30, start={"exit": 130})
    add_state(folder, 20)
    said = json.loads(kohyakit("report", folder, "--json").stdout)["suggestions"]
    assert said[0]["command"] == ["kohyakit", "resume", str(folder)]


def test_a_run_that_continued_another_is_not_told_to_look_more(made, codes) -> None:
    config = 'network_weights = "older.safetensors"\n'
    assert codes(made(config=config, dataset={"images": 4, "repeats": 80})) == ["nothing"]


def test_one_file_and_no_previews(made, codes) -> None:
    folder = made()
    (folder.parent / "frog-000001.safetensors").unlink()
    assert codes(folder) == ["one-copy"]


@pytest.mark.parametrize(("factor", "repeats"), [(1, 20), (0, 20), (0, 40000)])
def test_the_commands_can_be_typed(kohyakit, preset, trainer, lora, tmp_path, monkeypatch, factor, repeats) -> None:
    monkeypatch.chdir(tmp_path)
    kohyakit("launch", preset())
    lora("out/frog.safetensors")
    run = tmp_path / "out" / "frog.run"
    entries = [
        {"step": step, "epoch": 1, "loss": 1 + factor * step, "lr": {"unet": 1, "te": 1}} for step in range(1, 41)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["repeats"] = repeats
    (run / "run.json").write_text(json.dumps(record))
    said = json.loads(kohyakit("report", run, "--json").stdout)["suggestions"]
    assert {"same-rates", "no-previews"} <= {one["code"] for one in said}
    Path("prompts.txt").write_text("a frog")
    for one in said:
        assert kohyakit(*one["command"][1:], "--print-command").exit_code == 0, one


def test_commands_on_the_page_follow_the_current_folder(made, kohyakit, monkeypatch) -> None:
    folder = made(dataset={"images": 4, "repeats": 80})
    for place, words in ((folder.parent.parent, "out/frog.run"), (folder, "frog.run")):
        monkeypatch.chdir(place)
        kohyakit("report", folder)
        assert f"kohyakit resume {words} --epochs" in (folder / "report.html").read_text()


def test_a_broken_preview_is_named(made, kohyakit) -> None:
    folder = made()
    broken = next((folder.parent / "sample").glob("*e000001_00*"))
    broken.write_bytes(b"no picture")
    kohyakit("report", folder)
    assert f"{broken.name} cannot be read" in (folder / "report.html").read_text()


def test_previews_are_bounded_in_number_and_bytes(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(tmp_path / "a.png")
    Image.effect_noise((64, 64), 90).save(tmp_path / "b.png")
    shown = [Preview(tmp_path / name, 0, 1, None) for name in ("a.png", "b.png")]
    one = embed(shown[:1])
    assert embed(shown, most=one.size + 100).left_out == 1
    columns = [Moment(step, previews=dict(enumerate(shown))) for step in range(100)]
    assert [column.step for column in fitting(columns, 8)] == [0, 33, 66, 99]


def test_pictures_are_scaled_down(made) -> None:
    run = read_run(find(str(made())), "frog")
    assert embed(run.previews).side == 768
    assert embed(run.previews * 30).side == 384


def test_a_log_with_broken_lines_is_read(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 2, "epoch": 1, "loss": NaN}\n[1]\n{"step": 1, "loss": 3}\n{"step": 3, "lo')
    assert [(step.step, step.epoch, step.loss == 3) for step in read_log(log)] == [(1, 1, True), (2, 1, False)]


def test_values_are_reduced_as_in_a_header() -> None:
    assert shareable("vae", r"C:\Users\joan\vae.pt") == "vae.pt"
    assert shareable("network_args", ["conv_dim=4", "x=/home/joan/y"]) == ["conv_dim=4", "x=y"]
    assert shareable("wandb_api_key", "0123") == "***"


def test_the_average_leaves_out_what_is_no_number() -> None:
    nan = float("nan")
    assert moving_average([1, nan, 3, 5], 2) == [1, 1, 3, 4]


def test_ticks_are_round() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(3, 41) == [10, 20, 30, 40]
    assert ticks(2, 2) == [2]


def test_thinning_keeps_the_peak() -> None:
    points = [(float(step), 0.0) for step in range(5000)]
    points[1234] = (1234.0, 9.0)
    found = thinned(points)
    assert (1234.0, 9.0) in found
    assert len(found) <= 800


def test_a_lost_loss_is_a_gap_and_a_line() -> None:
    points = [(1.0, 1.0), (2.0, float("nan")), (3.0, 2.0)]
    drawn = chart("Loss <", [Curve("each", "c0", points, raw=True)], [(1, 3)], number=str)
    assert 'class="lost"' in drawn
    assert "Loss &lt;" in drawn
    assert "nan" not in drawn.partition("<rect")[0]
    assert chart("Loss", [Curve("each", "c0", [(1.0, float("nan"))])], [], number=str) == ""


def test_a_copy_within_an_epoch_belongs_to_the_epoch_after_those_its_header_counts(made, lora) -> None:
    folder = made()
    lora("out/frog-step00000030.safetensors", metadata={"ss_steps": "30", "ss_epoch": "1"})
    copies = {copy.path.name: (copy.step, copy.epoch) for copy in read_run(find(str(folder)), str(folder)).copies}
    assert copies["frog-step00000030.safetensors"] == (30, 2)


def test_what_stands_beside_a_file_is_no_epoch(made, lora) -> None:
    folder = made()
    before = [copy.path.name for copy in read_run(find(str(folder)), str(folder)).copies]
    lora("out/frog.ema.safetensors", metadata={"ss_steps": "40", "ss_epoch": "2"})
    lora("out/frog-000001.peft.safetensors")
    assert [copy.path.name for copy in read_run(find(str(folder)), str(folder)).copies] == before


def test_many_epochs_run_down_the_page_and_few_across(made, kohyakit) -> None:
    folder = made(config="\n")
    kohyakit("report", folder)
    few = (folder / "report.html").read_text()
    assert "<thead><tr><th></th><th>epoch 1, step 20</th>" in few.partition('class="sheet"')[2]
    record = json.loads((folder / "run.json").read_text())
    record["steps"] = {"updates_per_epoch": 5, "total": 40}
    (folder / "run.json").write_text(json.dumps(record))
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    lines = [json.dumps({**entry, "epoch": (entry["step"] + 4) // 5}) for entry in log]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    for epoch in range(1, 9):
        for index in range(2):
            name = f"frog_e{epoch:06d}_{index:02d}_20260131123{epoch}00_{index + 1}.png"
            Image.new("RGB", (64, 64), (20 * epoch, 30, 30)).save(folder.parent / "sample" / name)
    kohyakit("report", folder)
    sheet = (folder / "report.html").read_text().partition('class="sheet"')[2].partition("</table>")[0]
    assert sheet.count("<th>") == 3
    assert sheet.count("<tr>") == 1 + 8


def test_previews_can_be_enlarged_without_a_script(made, kohyakit) -> None:
    folder = made()
    kohyakit("report", folder)
    page = Page((folder / "report.html").read_text())
    boxes = [attrs for tag, attrs in page.tags if tag == "input"]
    assert len(boxes) == 4
    assert all(attrs["type"] == "checkbox" and str(attrs["aria-label"]).startswith("enlarge ") for attrs in boxes)


def test_the_settings_are_folded(made, kohyakit) -> None:
    folder = made()
    kohyakit("report", folder)
    assert [attrs for tag, attrs in Page((folder / "report.html").read_text()).tags if tag == "details"] == [{}]


@pytest.fixture
def with_images(made, tmp_path: Path) -> Path:
    """A run whose five training images are here, one of them without a caption."""
    images = tmp_path / "photos" / "10_frog"
    images.mkdir(parents=True)
    for number in range(5):
        Image.new("RGB", (512, 384), (50 * number, 90, 40)).save(images / f"{number}.png")
        if number:
            (images / f"{number}.caption").write_text(f"a frog <{number}>")
    return made(config='resolution = "512,512"\nenable_bucket = true\n', images=images.parent)


def test_training_images_and_their_problems_are_on_the_page(with_images: Path, kohyakit) -> None:
    kohyakit("report", with_images)
    text = (with_images / "report.html").read_text()
    section = text.partition("<h2>Training images</h2>")[2].partition("<h2>")[0]
    assert section.count("<img ") == 5
    assert "a frog &lt;3&gt;" in section
    assert "<li>warning: " in section
    assert str(with_images.parent.parent) not in text
    assert kohyakit("report", with_images, "--no-images").exit_code == 0
    assert "a frog &lt;3&gt;" not in (with_images / "report.html").read_text()


def test_images_that_are_not_here_are_no_fault(made, kohyakit) -> None:
    folder = made()
    assert kohyakit("report", folder).exit_code == 0
    assert "They are not here any more" in (folder / "report.html").read_text()
