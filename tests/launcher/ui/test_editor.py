"""Editing through the page: nothing is lost, the page says what the commands say, each change is saved and undone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launcher.check.resolve import UsageError, presets, resolve
from launcher.ui import editing
from launcher.ui.work import Work, mark_of
from schemas.config import read_value, table
from schemas.problems import ConfigError

FORM = '{\n  "LoRA_type": "Standard",\n  "of_my_own": [1, {"a": 1e-4}],\n  "network_dim": 8,\n  "learning_rate": 0.0001\n}\n'
TOML = '# mine\nnetwork_module = "networks.lora"\nnetwork_dim = 8  # small\n\n[more]\nlearning_rate = 1e-4\nof_my_own = 3\n'
CIVITAI = '{"engine": "kohya", "unetLR": 0.0005, "textEncoderLR": 0.0, "networkDim": 16, "numRepeats": 4}'
ANY = [("mine.json", FORM), ("mine.toml", TOML), ("site.json", CIVITAI),
       ("run.sh", "accelerate launch train_network.py --network_module networks.lora --network_dim 8\n")]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), ANY)
def test_a_file_that_is_opened_and_not_changed_is_saved_byte_for_byte(opened, page, site, name: str, text: str) -> None:
    content = text.replace("\n", "\r\n").encode("utf-8-sig")
    answer = page.post("/api/upload", params={"name": name}, content=content)
    entry = site.work.entry(answer.json()["address"].removeprefix("/config/"))
    page.get(f"/config/{entry.id}")
    assert site.work.path(entry).read_bytes() == content
    assert page.get(f"/config/{entry.id}/file").content == content


@pytest.mark.parametrize("preset", [path.stem for path in presets()])
def test_a_shipped_preset_trains_the_same_as_a_file(page, site, preset: str) -> None:
    answer = page.post("/api/open", json={"preset": preset}, headers={"Accept": "application/json"})
    entry = site.work.entry(answer.json()["address"].removeprefix("/config/"))
    own, shipped = resolve(str(site.work.path(entry))), resolve(preset)
    assert own.config == shipped.config
    assert {one.origin for one in own.settings.values()} == {one.origin for one in shipped.settings.values()}


def test_opening_a_file_leaves_it_where_it_is(opened, config, tmp_path: Path, site) -> None:
    first = opened(FORM)
    config(first, "set", {"network_dim": "4"})
    assert (tmp_path / "mine.json").read_text() == FORM
    assert opened(FORM) == first  # once more: the same config goes on
    (tmp_path / "mine.json").write_text(FORM.replace("8", "9"))
    assert opened(tmp_path / "mine.json") == "mine-2"


def test_one_changed_value_is_the_only_change_in_the_text(opened, config) -> None:
    found = config(opened(FORM), "set", {"network_dim": "32"})
    assert found["text"] == FORM.replace("8,", "32,")
    found = config(opened(TOML, "mine.toml"), "set", {"network_dim": "32"})
    assert found["text"] == TOML.replace("= 8 ", "= 32 ")


def test_a_key_that_is_not_there_is_added_and_the_rest_stays(opened, config) -> None:
    found = config(opened(FORM), "set", {"min_snr_gamma": "5"})
    assert found["text"].startswith(FORM.rstrip("}\n"))
    assert json.loads(found["text"])["min_snr_gamma"] == 5
    found = config(opened(TOML, "mine.toml"), "set", {"min_snr_gamma": "5"})
    assert found["text"].replace("min_snr_gamma = 5.0\n", "") == TOML


@pytest.mark.parametrize(("name", "value"), [
    ("xformers", "true"), ("ema_decay", "0.99"), ("network_args", "conv_dim=4 conv_alpha=1"), ("text_encoder_lr", "1e-5"),
    ("lr_warmup_steps", "0.1"), ("optimizer_type", "Prodigy"), ("max_train_epochs", "3"), ("network_dim", ""),
    ("caption_prefix", "a, "), ("optimizer_args", "weight_decay=0.1 betas=0.9,0.99"), ("network_train_unet_only", "true"),
])  # fmt: skip
@pytest.mark.parametrize(("file", "text"), ANY)
def test_a_field_means_what_set_means_on_the_command_line(opened, config, site, file, text, name, value) -> None:
    start = opened(text, file)
    config(start, "set", {name: value})
    entry = site.work.entry(start)
    saved = resolve(str(site.work.path(entry)))
    wanted = resolve(file, {name: value}, text=text)
    assert editing.compare(saved, wanted) == ([], [])


def test_a_format_that_is_only_read_becomes_one_that_is_written_and_undo_brings_it_back(opened, config, site) -> None:
    script = ANY[-1][1]
    name = opened(script, "run.sh")
    found = config(name, "set", {"network_dim": "4"})
    assert json.loads(found["text"])["network_dim"] == 4
    assert found["file"].endswith("run.json")
    assert not (site.work.folder / "run.sh").exists()
    found = config(name, "undo")
    assert (found["text"], site.work.folder.joinpath("run.sh").read_text()) == (script, script)


def test_what_a_change_of_format_leaves_behind_is_said(opened, config) -> None:
    found = config(opened(FORM), "set", {"caption_prefix": "a photo of"})  # a form has no place for words with blanks
    assert found["file"].endswith(".toml")
    assert [one.partition(":")[0] for one in found["lost"]] == ["of_my_own"]


@pytest.mark.parametrize(("file", "text"), [
    ("site.json", CIVITAI),
    ("easy.toml", '[general_args.args]\nmax_train_steps = 90\n[network_args.args]\nnetwork_dim = 8\nunknown = 1\n[optimizer_args.args]\nlearning_rate = 1e-4\n'),
    ("colab.toml", '[additional_network_arguments]\nnetwork_dim = 8\nnetwork_module = "networks.lora"\n[training_arguments]\noutput_name = "x"\n'),
])  # fmt: skip
def test_a_dialect_of_another_tool_is_changed_in_its_own_words(opened, config, file: str, text: str) -> None:
    found = config(opened(text, file), "set", {"network_dim": "4"})
    old = "16" if file == "site.json" else "= 8"
    assert found["text"] == text.replace(old, old.replace("8", "4").replace("16", "4"))


values = {
    option.name: {
        bool: st.sampled_from(["true", "false"]),
        int: st.integers(0, 9999).map(str),
        float: st.floats(0, 1).map(lambda one: f"{one:g}"),
        str: st.sampled_from(option.choices) if option.choices else st.text("abcXYZ/._-019 ", min_size=1, max_size=12),
    }[option.kind]
    for option in table().values()
    if not option.secret
    and option.name not in (*editing.NO_FILE_SAYS, "config_file", "output_config")
    and not option.many
}


def edited(text: str, file: str, name: str, value: str, folder: Path) -> editing.Edit | None:
    """None where no format of ours can say it, and that is what is said."""
    try:
        return editing.edit(text, file, {name: value}, folder)
    except ConfigError as fault:
        if [one.code for one in fault.problems] != ["cannot-say"]:
            raise
        return None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(ANY[:2]))
def test_any_value_of_any_option_is_saved_as_the_command_line_would_take_it(tmp_path: Path, data, start) -> None:
    file, text = start
    name = data.draw(st.sampled_from(sorted(values)))
    value = data.draw(values[name])
    try:
        read_value(table()[name], value)
    except ValueError:
        with pytest.raises(ConfigError):
            editing.edit(text, file, {name: value}, tmp_path)
        return
    try:
        wanted = resolve(file, {name: value}, text=text)
    except UsageError:  # a length of 0 where no form counts the steps
        with pytest.raises(UsageError):
            editing.edit(text, file, {name: value}, tmp_path)
        return
    made = edited(text, file, name, value, tmp_path)
    if made is None:
        return
    saved = resolve(made.file, text=made.text)
    assert editing.compare(saved, wanted) == ([], [])
    if made.file == file:
        assert "of_my_own" in made.text


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_size=6),
       st.text(max_size=8), st.integers() | st.text(max_size=8), st.sampled_from([None, 2, "\t"]))  # fmt: skip
def test_put_changes_one_key_of_any_object(document: dict[str, Any], key: str, value: Any, indent: Any) -> None:
    text = json.dumps(document, indent=indent)
    assert json.loads(editing.put(text, key, value)) == {**document, key: value}


def test_a_value_that_cannot_be_read_is_not_saved_and_says_what_a_comma_means(opened, config) -> None:
    name = opened(FORM)
    for value in ("0,0001", "abc", "-1"):
        said = config(name, "set", {"learning_rate": value}, status=422)["problems"][0]
        assert (said["key"], said["got"]) == ("learning_rate", value)
        assert said["fix"]
    assert "0.0001" in config(name, "set", {"learning_rate": "0,0001"}, status=422)["problems"][0]["fix"]
    assert config(name)["text"] == FORM
    assert config(name, "set", {"learning_rate": "1e-5"})["version"] == 2


def test_undo_and_redo_are_files(opened, config, site) -> None:
    name = opened(FORM)
    config(name, "undo", status=422)
    config(name, "set", {"network_dim": "16"})
    config(name, "set", {"network_alpha": "4"})
    path = site.work.path(site.work.entry(name))
    assert json.loads(path.read_text())["network_alpha"] == 4
    config(name, "undo")
    assert path.read_text() == FORM.replace("8,", "16,")
    config(name, "undo")
    assert path.read_text() == FORM
    config(name, "redo")
    assert path.read_text() == FORM.replace("8,", "16,")
    config(name, "set", {"seed": "1"})
    config(name, "redo", status=422)


def test_typing_in_one_field_is_one_change(opened, config) -> None:
    name = opened(FORM)
    for value in ("1", "12", "128"):
        config(name, "set", {"network_dim": value})
    assert config(name, "undo")["text"] == FORM


def test_a_file_that_another_program_has_changed_is_not_written_over(opened, config, page, site) -> None:
    name = opened(FORM)
    path = site.work.path(site.work.entry(name))
    theirs = FORM.replace("8,", "99,")
    path.write_text(theirs)
    both = config(name, "set", {"network_dim": "16"}, status=409)
    assert (both["disk"], both["ours"]) == (theirs, FORM)
    assert path.read_text() == theirs
    assert "changed by another program" in page.get(f"/config/{name}").text
    for what in ("undo", "launch", "text"):
        config(name, what, {"text": FORM}, status=409)
    assert config(name, "settle", {"take": "disk"})["text"] == theirs
    assert config(name, "undo")["text"] == FORM


def test_putting_ones_own_back_keeps_the_other_version_too(opened, config, site) -> None:
    name = opened(FORM)
    site.work.path(site.work.entry(name)).unlink()
    assert config(name)["changed_on_disk"]
    assert config(name, "settle", {"take": "ours"})["text"] == FORM
    assert site.work.path(site.work.entry(name)).read_text() == FORM


def test_a_server_that_was_killed_in_the_middle_of_a_save_loses_nothing(opened, config, site, monkeypatch) -> None:
    name = opened(FORM)
    monkeypatch.setattr(Work, "_keep", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    entry = site.work.entry(name)
    with pytest.raises(KeyboardInterrupt):
        site.work.save(entry, FORM.replace("8,", "64,").encode(), "set network_dim")
    monkeypatch.undo()
    found = config(name)
    assert not found["changed_on_disk"]
    assert found["text"] == FORM.replace("8,", "64,")
    assert config(name, "undo")["text"] == FORM


def test_two_windows_change_one_config_and_neither_loses(opened, page, config) -> None:
    name = opened(FORM)
    first = config(name)["token"]
    page.get(f"/config/{name}")
    config(name, "set", {"network_dim": "16"})
    config(name, "set", {"network_alpha": "4"})  # from a window that has not seen the other's change
    kept = json.loads(config(name)["text"])
    assert (kept["network_dim"], kept["network_alpha"]) == (16, 4)
    news = page.get(f"/config/{name}/changes", params={"seen": first}).text
    assert 'id="f-network_dim"' in news
    assert 'id="f-network_alpha"' in news
    assert 'id="f-caption_separator"' not in news  # only what has changed
    assert page.get(f"/config/{name}/changes", params={"seen": config(name)["token"]}).status_code in (200, 204)
    stale = config(name, "text", {"text": FORM, "seen": first}, status=409)
    assert json.loads(stale["now"])["network_dim"] == 16


def test_a_text_that_cannot_be_read_stays_and_its_line_is_marked(opened, config, page) -> None:
    name = opened(FORM)
    broken = FORM.replace('"network_dim": 8,', '"network_dim": 8')
    found = config(name, "text", {"text": broken})
    assert (found["text"], found["ok"], found["plan"]) == (broken, False, None)
    assert [one["line"] for one in found["findings"]] == [4]
    assert "<b>4</b>" in page.get(f"/config/{name}?view=json").text
    assert "cannot be read as a config" in page.get(f"/config/{name}").text
    assert config(name, "undo")["text"] == FORM


def test_the_other_form_is_editable_and_touches_only_what_was_changed(opened, config, page) -> None:
    name = opened(FORM)
    toml = re.search(r"(?s)<textarea[^>]*>(.*?)</textarea>", page.get(f"/config/{name}?view=toml").text)
    assert toml is not None
    text = toml[1].replace("&#34;", '"').replace("network_dim = 8", "network_dim = 24")
    found = config(name, "text", {"text": text, "kind": "toml"})
    assert found["text"] == FORM.replace("8,", "24,")
    bad = config(name, "text", {"text": "network_dim = 'x'\n", "kind": "toml"}, status=422)
    assert bad["problems"][0]["key"] == "network_dim"


def test_the_documents_are_those_of_the_commands(kohyakit, page, preset, opened) -> None:
    path = preset(of_my_own=1, train_batch_size="2")
    for words, address in (
        (("validate", path), f"/api/validate?file={path}"),
        (("plan", path), f"/api/plan?file={path}"),
        (("convert", path, "--to", "sd-scripts"), f"/api/convert?file={path}&to=sd-scripts"),
        (("diff", path, "toy"), f"/api/diff?a={path}&b=toy"),
        (("explain", "network_alpha"), "/api/explain/network_alpha"),
        (("presets",), "/api/presets"),
    ):
        said = json.loads(kohyakit(*words, "--json").stdout)
        assert page.get(address).json() == said, words


def test_the_plan_of_the_page_is_the_plan_of_its_command(kohyakit, opened, config, preset, site) -> None:
    name = opened(preset())
    config(name, "words", {"vram": "6"})
    found = config(name, "set", {"max_train_epochs": "3"})
    said = json.loads(kohyakit("plan", site.work.folder / "frog.json", "--vram", "6", "--json").stdout)
    assert found["plan"]["total"] == said["steps"]["total"] == 18
    assert found["words"] == ["--vram", "6"]
    assert len(found["plan"]["fits"]) == len(said["fit"])


def test_each_fix_that_has_a_button_removes_its_finding(opened, config, preset) -> None:
    name = opened(
        preset(
            network_dropout=3,
            keep_tokens=-2,
            lr_warmup_steps="nan",
            optimizer="Prodigy",
            unet_lr=1,
            text_encoder_lr=0.5,
        )
    )
    for _ in range(12):
        found = config(name)
        todo = [(one, button) for one in found["findings"] if one["severity"] == "error"
                for button in one["buttons"] if button["action"] == "set"]  # fmt: skip
        if not todo:
            break
        one, button = todo[0]
        after = config(name, "set", button["sets"])
        assert (one["code"], one["key"], one["must"]) not in [
            (o["code"], o["key"], o["must"]) for o in after["findings"]
        ]
    assert [one for one in config(name)["findings"] if one["severity"] == "error" and one["buttons"][:1] != []
            and one["buttons"][0]["action"] == "set"] == []  # fmt: skip


def test_consent_is_a_word_of_the_next_launch_and_in_no_file(opened, config, preset, site) -> None:
    name = opened(preset(huggingface_repo_id="me/frog"))
    found = config(name)
    asked = next(one for one in found["findings"] if one["code"] == "needs-consent")
    button = next(one for one in asked["buttons"] if one["action"] == "trust")
    after = config(name, "words", {"trust": button["name"]})
    assert "needs-consent" not in [one["code"] for one in after["findings"]]
    assert after["words"] == ["--trust", "huggingface_repo_id"]
    assert "trust" not in json.loads(after["text"])
    assert config(name, "words", {"distrust": "huggingface_repo_id"})["words"] == []
    config(name, "set", {"trust": "x"}, status=422)
    config(name, "set", {"wandb_api_key": "x"}, status=422)


def test_every_option_has_its_field_and_is_found_by_its_gui_name(opened, page) -> None:
    text = page.get(f"/config/{opened(FORM)}").text
    for name in table():
        if name not in ("config_file", "output_config", "trust", "overwrite"):
            assert f'id="f-{name}"' in text, name
            assert f'href="/explain/{name}"' in text
    assert "max_resolution" in re.findall(r'id="f-resolution"[^>]*data-search="([^"]*)"', text)[0]


def test_a_field_says_who_set_it_and_what_the_file_said(opened, config, page) -> None:
    name = opened(FORM.replace("8,", '"8",'))
    config(name, "set", {"learning_rate": "2e-4"})
    text = page.get(f"/config/{name}").text

    def row(option: str) -> str:
        return text[text.index(f'id="f-{option}"') :].split("</div>\n</div>")[0]

    assert 'data-who="you"' in row("learning_rate")
    assert "it was 0.0001" in row("learning_rate")
    assert 'data-who="file"' in row("network_dim")
    assert 'data-who="default"' in row("clip_skip")
    assert "of_my_own" in text[text.index('id="ignored"') :]


def test_a_strange_option_or_config_is_refused(opened, config, page) -> None:
    name = opened(FORM)
    config(name, "set", {"no_such_thing": "1"}, status=404)
    config(name, "set", {}, status=422)
    config(name, "words", {"vram": "lots"}, status=422)
    config(name, "words", {"sets": {"network_dim": "x"}}, status=422)
    config(name, "settle", {"take": "both"}, status=422)
    config("no-such", status=404)
    assert page.get("/config/..%2F..%2Fetc").status_code == 404
    assert (
        page.post(f"/api/config/{name}/set", content=b"[1]", headers={"content-type": "application/json"}).status_code
        == 422
    )
    assert (
        page.post(f"/api/config/{name}/set", content=b"{", headers={"content-type": "application/json"}).status_code
        == 422
    )
    assert page.get("/explain/no_such_thing").status_code == 404


@pytest.mark.parametrize("content", [b"", b"  \n", b"\x00\x01\x02"])
def test_what_is_no_text_is_refused_where_it_was_dropped(page, content: bytes, site) -> None:
    answer = page.post("/api/upload", params={"name": "x.json"}, content=content)
    assert answer.status_code == 422
    assert answer.json()["problems"][0]["fix"]
    assert site.work.entries() == []


def test_every_version_is_kept_whole(site, monkeypatch) -> None:
    monkeypatch.setattr("launcher.ui.work.KEPT", 8)
    entry = site.work.add("a.json", b"1")
    for number in range(12):
        entry = site.work.save(entry, str(number).encode(), f"change {number}")
    assert len(entry.versions) == 8
    assert site.work.kept(entry, 0) == b"1"
    for at, version in enumerate(entry.versions):
        assert mark_of(site.work.kept(entry, at)) == version.mark


def test_a_damaged_record_hides_one_config_and_no_other(site, page) -> None:
    site.work.add("a.json", b"{}")
    site.work.add("b.json", b"{}")
    (site.work.configs / "a" / "meta.json").write_text('{"versions": [{"number": 1}]')
    assert [entry.id for entry in site.work.entries()] == ["b"]
    assert page.get("/").status_code == 200


def test_prompts_are_edited_where_they_lie(opened, config, site) -> None:
    name = opened(FORM)
    found = config(name, "prompts", {"text": "a frog --d 1\r\na toad --d 2\n"})
    assert json.loads(found["text"])["sample_prompts"] == "a frog --d 1\na toad --d 2"
    assert json.loads(found["text"])["of_my_own"]
    assert config(name, "undo")["text"] == FORM
    name = opened(TOML, "mine.toml")
    found = config(name, "prompts", {"text": "a frog"})
    file = site.work.folder / f"{name}-prompts.txt"
    assert file.read_text() == "a frog\n"
    assert resolve(str(site.work.path(site.work.entry(name)))).config.sample_prompts == str(file)
    assert "sample_prompts" not in config(name, "prompts", {"text": ""})["text"]


def test_a_price_an_hour_makes_a_cost_of_a_time(opened, config, preset, tmp_path: Path) -> None:
    run = tmp_path / "out" / "other.run"
    run.mkdir(parents=True)
    (run / "config.toml").write_text('train_batch_size = 2\nresolution = "64,64"\n')
    (run / "run.json").write_text('{"family": "sd15", "starts": [{"exit": 0}]}')
    (run / "log.jsonl").write_text('{"step": 1, "epoch": 1, "loss": 1, "seconds": 300.0}\n')
    name = opened(preset())
    plan = config(name, "words", {"price": "0,5"})["plan"]
    assert (plan["time"], plan["cost"]) == ("1:00:00", "0.50")  # 12 steps of five minutes
    assert config(name)["words"] == []  # it is no word of the command
    config(name, "words", {"price": "dear"}, status=422)
