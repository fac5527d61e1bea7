"""`kohyakit ui` as a person meets it, in a real browser."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from launcher.check.resolve import resolve
from tests.browser.conftest import ROOT, Browser, Server

MODEL = ROOT / "trainer" / "toy" / "sd15.safetensors"
# As a form of Kohya's GUI is shared: another machine's paths, a key of a fork, a value with a decimal comma.
PRESET = {
    "LoRA_type": "Standard", "pretrained_model_name_or_path": "D:/models/v1-5.safetensors", "train_data_dir": "D:/frogs",
    "output_dir": "D:/out", "output_name": "qfrog", "max_resolution": "64,64", "min_bucket_reso": 64, "max_bucket_reso": 64,
    "network_dim": 4, "network_alpha": 4, "train_batch_size": 4, "epoch": 2, "max_train_steps": 0, "caption_extension": ".txt",
    "optimizer": "AdamW", "mixed_precision": "no", "save_precision": "float", "xformers": "sdpa", "learning_rate": "0,005",
    "unet_lr": 0.005, "text_encoder_lr": 0.005, "lr_scheduler": "constant", "lr_warmup": 0, "save_every_n_epochs": 1, "seed": 1,
    "cache_latents": True, "sample_every_n_epochs": 1, "sample_sampler": "euler", "max_data_loader_n_workers": 0,
    "sample_prompts": "qfrog, on grass --w 64 --h 64 --s 4 --d 1", "of_a_fork": [1, 2],
}  # fmt: skip


def ready(folder: Path, name: str, **changes: object) -> Path:
    """The preset under that name with what a person would have mended, and with `changes`."""
    mended = {"pretrained_model_name_or_path": str(MODEL), "train_data_dir": str(folder / "frogs"), "output_dir": str(folder / name),
              "learning_rate": 0.005}  # fmt: skip
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**PRESET, **mended, **changes}, indent=2))
    return path


def drop(browser: Browser, path: Path) -> None:
    """Chooses a file on the start page."""
    browser.go("/")
    browser.one("#choose").send_keys(str(path))
    browser.until(lambda: "/config/" in browser.driver.current_url, "the editor")


def open_path(browser: Browser, path: Path) -> None:
    browser.go("/")
    browser.one("#p-open").send_keys(str(path), Keys.ENTER)
    browser.until(lambda: "/config/" in browser.driver.current_url, "the editor")


@pytest.mark.slow
def test_a_newcomer_trains_from_a_strangers_preset_by_what_the_page_says(browser: Browser, server: Server) -> None:
    file = server.folder / "strange.json"
    file.write_text(json.dumps(PRESET, indent=2))
    drop(browser, file)
    saved = server.folder / "work" / "strange.json"
    assert saved.read_bytes() == file.read_bytes()  # loaded, and nothing else
    browser.says("another machine", "#findings")
    assert not browser.one(".train").is_enabled()

    browser.says("0.005", "#findings")  # what the comma would mean
    browser.click("#findings [data-fix=set][data-name=learning_rate]")
    browser.until(lambda: json.loads(saved.read_text())["learning_rate"] == 0.005, "the fix is in the file")
    browser.type("pretrained_model_name_or_path", str(MODEL))
    browser.type("train_data_dir", str(server.folder / "frogs"))
    browser.type("output_dir", str(server.folder / "strange"))
    browser.says("160 steps", "#plan")  # 20 images x 16 / 4 x 2 epochs
    browser.says("0 errors, 1 warning", "#findings")  # the key of a fork
    kept = json.loads(saved.read_text())
    assert kept["of_a_fork"] == [1, 2]
    assert {key for key in PRESET if kept[key] != PRESET[key]} == {"pretrained_model_name_or_path", "train_data_dir", "output_dir",
                                                                   "learning_rate"}  # fmt: skip

    browser.click(".train")
    browser.until(lambda: "/run/" in browser.driver.current_url, "the page of the run")
    browser.until(lambda: browser.text("#r-state") == "running", "running")
    browser.until(lambda: browser.all("#c-loss canvas"), "the loss is drawn", 120)
    browser.until(lambda: browser.all("#previews img"), "a preview", 180)
    assert browser.driver.execute_script("return document.querySelector('#previews img').decode().then(() => 64)") == 64
    browser.click("#b-stop")
    browser.until(lambda: browser.text("#r-state") == "stopped, state kept", "stopped", 120)
    step = int(browser.text("#r-step").split()[0])
    assert 80 <= step < 160
    browser.says("Resume it", "#report")

    browser.click("#b-resume")
    browser.until(lambda: browser.text("#r-state") == "finished", "finished", 240)
    assert browser.text("#r-step") == "160 of 160"
    assert (server.folder / "strange" / "qfrog.safetensors").is_file()

    browser.click("a[href$='/compare']")
    slider = browser.one("#slider")
    slider.send_keys(Keys.HOME)
    assert "100%" in browser.driver.execute_script("return document.querySelector('.over .top').style.clipPath")
    browser.click("[data-keep='qfrog-000001.safetensors']")
    browser.until(lambda: (server.folder / "strange" / "kept" / "qfrog-000001.safetensors").is_file(), "kept")


@pytest.mark.slow
def test_the_run_goes_on_while_server_and_browser_are_away(browser: Browser, server: Server) -> None:
    open_path(browser, ready(server.folder, "away", epoch=3, sample_prompts=""))
    browser.says("240 steps", "#plan")
    browser.click(".train")
    browser.until(lambda: browser.all("#c-loss canvas"), "the loss is drawn", 120)
    server.stop(signal.SIGKILL)
    browser.until(lambda: browser.one("#gone").is_displayed(), "the banner")
    log = server.folder / "away" / "qfrog.run" / "log.jsonl"
    before = log.read_text().count("\n")
    browser.until(lambda: log.read_text().count("\n") > before + 5, "it trains on")
    server.start()
    browser.until(lambda: not browser.one("#gone").is_displayed(), "the banner goes by itself")
    where = browser.driver.current_url
    browser.driver.get("about:blank")
    browser.until(lambda: log.read_text().count("\n") >= 240, "its end", 240)
    browser.driver.get(where)
    browser.until(lambda: browser.text("#r-state") == "finished", "finished")
    assert browser.text("#r-step") == "240 of 240"
    assert browser.all("#c-loss canvas")
    browser.go("/")
    browser.says("qfrog", "#runs")
    browser.says("finished", "#runs")


def test_two_windows_and_another_program_on_one_config(browser: Browser, server: Server) -> None:
    open_path(browser, ready(server.folder, "two"))
    address = browser.driver.current_url
    saved = server.folder / "work" / "two.json"
    first = browser.driver.current_window_handle
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(address)
    browser.type("network_dim", "12")
    browser.until(lambda: json.loads(saved.read_text())["network_dim"] == 12, "saved")
    browser.driver.switch_to.window(first)
    browser.until(lambda: browser.one("#i-network_dim").get_attribute("value") == "12", "the first window shows it")
    browser.type("network_alpha", "6")
    browser.until(lambda: json.loads(saved.read_text())["network_alpha"] == 6, "saved")
    assert json.loads(saved.read_text())["network_dim"] == 12

    theirs = saved.read_text().replace('"network_dim": 12', '"network_dim": 99')
    saved.write_text(theirs)
    browser.says("changed by another program", "#conflict")
    browser.says('"network_dim": 99', "#conflict")
    assert saved.read_text() == theirs
    browser.click("[data-take=disk]")
    browser.until(lambda: browser.one("#i-network_dim").get_attribute("value") == "99", "theirs is taken")
    browser.click("[data-do=undo]")
    browser.until(lambda: json.loads(saved.read_text())["network_dim"] == 12, "undo reaches ours")
    browser.driver.switch_to.window(browser.driver.window_handles[-1])
    browser.driver.close()
    browser.driver.switch_to.window(first)


def test_fields_are_found_explained_and_undone_by_keyboard(browser: Browser, server: Server) -> None:
    path = ready(server.folder, "keys")
    open_path(browser, path)
    saved = server.folder / "work" / "keys.json"
    body = browser.one("body")
    body.send_keys("/")
    browser.driver.switch_to.active_element.send_keys("max_resolution")  # Kohya's name of it
    browser.says("1 option", "#hits")
    field = browser.one("#i-resolution")
    assert field.is_displayed()
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("128,128")
    browser.until(lambda: json.loads(saved.read_text())["max_resolution"] == "128,128", "saved")
    assert browser.driver.switch_to.active_element.get_attribute("id") == "i-resolution"  # typing is not disturbed
    browser.one("#search").send_keys(Keys.ESCAPE)
    browser.driver.execute_script("document.activeElement.blur()")
    body = browser.one("body")
    body.send_keys(Keys.CONTROL, "z")
    browser.until(lambda: saved.read_bytes() == path.read_bytes(), "as it came, byte for byte")
    browser.type("learning_rate", "0,001")
    browser.says("0.001", "#t-learning_rate")
    assert saved.read_bytes() == path.read_bytes()
    browser.click("#f-network_alpha .opt")
    browser.says("Scale of the adapter")
    browser.driver.back()
    browser.until(lambda: "/config/" in browser.driver.current_url, "back")


def test_text_that_does_not_parse_stays_with_its_line(browser: Browser, server: Server) -> None:
    open_path(browser, ready(server.folder, "text"))
    address = browser.driver.current_url
    saved = server.folder / "work" / "text.json"
    browser.driver.get(f"{address}?view=json")
    broken = saved.read_text().replace('"seed": 1,', '"seed": 1')
    browser.driver.execute_script("document.getElementById('text').value = arguments[0]", broken)
    browser.click("#textform button")
    browser.until(lambda: saved.read_text() == broken, "saved as it is")
    browser.until(lambda: browser.all(".lines b"), "the line is marked")
    browser.click("[data-do=undo]")
    browser.until(lambda: saved.read_text() != broken, "undone")
    browser.driver.get(f"{address}?view=toml")
    text = browser.one("#text").get_attribute("value") or ""
    browser.driver.execute_script(
        "document.getElementById('text').value = arguments[0]", text.replace("network_dim = 4", "network_dim = 24")
    )
    browser.click("#textform button")
    browser.until(lambda: json.loads(saved.read_text())["network_dim"] == 24, "put into the JSON")
    assert json.loads(saved.read_text())["of_a_fork"] == [1, 2]


def test_a_caption_is_edited_and_undone(browser: Browser, server: Server) -> None:
    folder = server.folder / "frogs"
    browser.go(f"/images?dir={folder}")
    browser.until(lambda: len(browser.all(".shot")) == 20, "the sheet")
    browser.until(
        lambda: browser.driver.execute_script("return document.querySelector('.shot img').naturalWidth") > 0, "an image"
    )
    browser.until(lambda: not browser.all("#checking"), "the check is done")
    area = browser.one(".shot textarea")
    file = Path(area.get_attribute("data-caption") or "").with_suffix(".txt")
    before = file.read_text()
    area.send_keys(Keys.CONTROL, "a")
    area.send_keys("qfrog, <b>mine</b>", Keys.CONTROL, Keys.ENTER)
    browser.until(lambda: file.read_text() == "qfrog, <b>mine</b>", "saved")
    browser.says("saved", ".shot figcaption")
    browser.click("[data-caption-undo]")
    browser.until(lambda: file.read_text() == before, "undone")


def test_every_screen_fits_a_phone_in_light_and_dark(browser: Browser, server: Server) -> None:
    open_path(browser, ready(server.folder, "phone"))
    name = browser.driver.current_url.rpartition("/")[2]
    pages = ["/", f"/config/{name}", f"/config/{name}?view=json", f"/config/{name}/diff?with=sdxl-character", "/queue", "/lora",
             f"/images?dir={server.folder / 'frogs'}", "/explain/network_alpha", f"/lora?file={MODEL}"]  # fmt: skip
    for scheme in ("light", "dark"):
        browser.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        )
        for page in pages:
            browser.go(page)
            assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= 390, page
            assert browser.driver.execute_script(CONTRAST) == [], (scheme, page)
            assert browser.driver.execute_script(UNNAMED) == [], page
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# Texts whose colour has less than 4.5 times the luminance of what is behind them (WCAG 2.1, 1.4.3).
CONTRAST = """
const light = (colour) => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b };
const behind = (one) => { for (let at = one; at; at = at.parentElement) { const colour = getComputedStyle(at).backgroundColor; if (!/, 0\\)$/.test(colour)) return colour; } return 'rgb(255, 255, 255)'; };
return Array.from(document.querySelectorAll('main *, nav *')).filter((one) => one.offsetParent && !one.disabled && Array.from(one.childNodes).some((n) => n.nodeType === 3 && n.textContent.trim()))
  .map((one) => { const a = light(getComputedStyle(one).color), b = light(behind(one)); return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), one.tagName + '.' + one.className + ': ' + one.textContent.trim().slice(0, 40)]; })
  .filter(([ratio]) => ratio < 4.5).slice(0, 5);
"""
# Things that can be used and have no name for a screen reader.
UNNAMED = """
return Array.from(document.querySelectorAll('input:not([type=hidden]), select, textarea, button, a, summary')).filter((one) => one.offsetParent)
  .filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || (one.labels && one.labels.length))).map((one) => one.outerHTML.slice(0, 90)).slice(0, 5);
"""


@pytest.mark.parametrize("seconds", [2.0])
def test_the_plan_follows_a_keystroke(browser: Browser, server: Server, seconds: float) -> None:
    """Half a second is what is promised on a quiet machine; the benchmark measures that."""
    open_path(browser, ready(server.folder, "plan"))
    browser.says("160 steps", "#plan")
    browser.one("#i-max_train_epochs").send_keys("5")
    begin = time.monotonic()
    browser.says("400 steps", "#plan", seconds)
    assert time.monotonic() - begin < seconds
    assert resolve(str(server.folder / "work" / "plan.json")).config.max_train_epochs == 5
    assert browser.driver.find_element(By.CSS_SELECTOR, "#f-max_train_epochs .who").text == "you"
