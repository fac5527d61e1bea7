"""What `kohyakit ui` promises, measured: nothing of a folder of configs is lost, and every screen is quick.

python -m benchmarks.ui lossless FOLDER...     each file through the HTTP interface, as it came and changed and undone
python -m benchmarks.ui speed                  times of a real server, in a real browser where there is chromium
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from schemas.terminal import say

SECRET, HOST = "a" * 48, "127.0.0.1:8765"
EDITS = {
    "network_dim": "7",
    "learning_rate": "3e-05",
    "max_train_epochs": "4",
    "xformers": "true",
    "caption_prefix": "a b",
}
STEPS, IMAGES, NIGHT = 100_000, 2_000, 20_000


def lossless(folders: list[Path]) -> int:
    """Exit code 1 where a file came back otherwise than it went in."""
    from starlette.testclient import TestClient

    from launcher.ui.app import application
    from launcher.ui.folders import Folders
    from launcher.ui.site import Site
    from launcher.ui.work import Work

    wrong = count = 0
    with tempfile.TemporaryDirectory() as place:
        site = Site(Folders((Path(place),)), Work(Path(place)))
        page = TestClient(application(site, SECRET, 8765), base_url=f"http://{HOST}")
        page.headers.update({"Authorization": f"Bearer {SECRET}"})
        for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
            count += 1
            for fault in _round_trip(page, site, path):
                wrong += 1
                say(f"{path.name}: {fault}")
    say(f"{count} files, {wrong} faults")
    return 1 if wrong else 0


def _round_trip(page: Any, site: Any, path: Path) -> Iterator[str]:
    from launcher.about.diff import compare
    from launcher.check.resolve import resolve

    content = path.read_bytes()
    answer = page.post("/api/upload", params={"name": path.name}, content=content)
    if answer.status_code != 200:
        yield from [] if answer.status_code == 422 and answer.json()["problems"] else [f"upload: {answer.status_code}"]
        return
    name = answer.json()["address"].removeprefix("/config/")
    saved = site.work.path(site.work.entry(name))
    for view in ("form", "json", "toml"):
        if page.get(f"/config/{name}?view={view}").status_code != 200:
            yield f"view {view}"
    if saved.read_bytes() != content or page.get(f"/config/{name}/file").content != content:
        yield "other bytes than it came with"
    found = page.get(f"/api/config/{name}").json()
    if found["plan"] is None:
        return
    before = resolve(str(saved))
    for option, value in EDITS.items():
        wanted = resolve(str(saved), {option: value})
        answer = page.post(f"/api/config/{name}/set", json={option: value})
        if answer.status_code != 200:
            yield f"set {option}: {answer.text[:200]}"
            continue
        now = site.work.path(site.work.entry(name))
        after = resolve(str(now))
        if compare(after, wanted) != ([], []) and not answer.json()["lost"]:
            yield f"set {option}: trains otherwise than --set {option}={value}"
        gone = {key for key, fate in before.draft.keys.items() if fate.argument is None} - after.draft.keys.keys()
        if [key for key in gone if not any(said.startswith(f"{key}:") for said in answer.json()["lost"])]:
            yield f"set {option}: lost {sorted(gone)[:5]} without a word"
        if answer.json()["undo"]:
            page.post(f"/api/config/{name}/undo", json={})
        if site.work.path(site.work.entry(name)).read_bytes() != content:
            yield f"undo of {option}: other bytes than it came with"
            page.post(f"/api/config/{name}/undo", json={})


def speed() -> int:
    """Prints a table; nothing is compared, as machines differ."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _images(folder / "data" / "1_frog")
        _run(folder / "out" / "long.run")
        config = folder / "frog.json"
        config.write_text(json.dumps(_form(folder)))
        begin = time.perf_counter()
        process, address = _server(folder)
        try:
            say(f"process started to address printed  {time.perf_counter() - begin:6.2f} s")
            _server_times(address, config)
            if shutil.which("chromedriver"):
                _browser_times(address, folder)
        finally:
            process.terminate()
            process.wait()
    return 0


def _images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    Image.effect_noise((640, 512), 30).convert("RGB").save(folder / "0.jpg", quality=40)
    for number in range(1, IMAGES):
        shutil.copy(folder / "0.jpg", folder / f"{number}.jpg")
        (folder / f"{number}.txt").write_text(f"frog, {number}")


def _run(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('output_name = "long"\n')
    steps = {"total": STEPS, "updates_per_epoch": 1000, "epochs": 100}
    starts = [{"begin": "2026-01-31T12:00:00+01:00", "exit": 0}]
    (folder / "run.json").write_text(json.dumps({"family": "sd15", "steps": steps, "starts": starts}))
    with (folder / "log.jsonl").open("w") as stream:
        for step in range(1, STEPS + 1):
            stream.write(_line(step))


def _line(step: int) -> str:
    rates = {"unet": 1e-4, "textencoder": 5e-5}
    entry = {"step": step, "epoch": 1 + step // 1000, "loss": 0.1 + 1 / step + (step * 7919 % 101) / 1000, "lr": rates}
    return json.dumps({**entry, "seconds": 0.31, "memory": 7 * 2**30}) + "\n"


def _form(folder: Path) -> dict[str, Any]:
    model = Path(__file__).parent.parent / "trainer" / "toy" / "sd15.safetensors"
    return {
        "LoRA_type": "Standard", "pretrained_model_name_or_path": str(model), "train_data_dir": str(folder / "data"),
        "output_dir": str(folder / "out"), "output_name": "frog", "max_resolution": "512,512", "network_dim": 8,
        "network_alpha": 4, "epoch": 2, "max_train_steps": 0, "caption_extension": ".txt", "learning_rate": 1e-4,
        "unet_lr": 1e-4, "text_encoder_lr": 1e-5, "optimizer": "AdamW", "train_batch_size": 2, "cache_latents": True,
    }  # fmt: skip


def _server(folder: Path) -> tuple[subprocess.Popen[str], str]:
    root = Path(__file__).parent.parent
    words = [sys.executable, "-m", "launcher", "ui", str(folder), str(root / "trainer" / "toy"), "--no-browser", "--json",
             "--port", "0", "--dir", str(folder / "work")]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment)
    text = ""
    while not text.endswith("}\n"):
        assert process.stdout is not None
        text += process.stdout.readline()
    return process, str(json.loads(text)["address"])


def _server_times(address: str, config: Path) -> None:
    base, token = "/".join(address.split("/")[:3]), address.split("token=")[1]

    def ask(path: str, body: dict[str, Any] | None = None) -> bytes:
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", "Accept": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(base + path, data, headers), timeout=120) as answer:
            found: bytes = answer.read()
            return found

    _timed("first page", lambda: ask("/"))
    _timed("start page again", lambda: ask("/"), 5)
    name = json.loads(ask("/api/open", {"file": str(config)}))["address"].removeprefix("/config/")
    _timed(f"editor with {IMAGES} images, first time", lambda: ask(f"/config/{name}"))
    ranks = iter(range(9, 100))
    _timed("a changed value to its plan", lambda: ask(f"/api/config/{name}/set", {"network_dim": str(next(ranks))}), 9)
    run = next(one["id"] for one in json.loads(ask("/api/runs"))["runs"] if one["name"] == "long")
    _timed(f"curve of {STEPS} steps", lambda: ask(f"/api/run/{run}/curve"), 3)
    _timed("page of that run", lambda: ask(f"/run/{run}"), 3)
    page = ask(f"/config/{name}")
    say(f"{'editor page':<45} {len(page) / 1000:6.0f} kB before gzip")


def _timed(what: str, work: Callable[[], object], times: int = 1) -> None:
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        found.append(1000 * (time.perf_counter() - begin))
    say(f"{what:<45} {statistics.median(found):6.0f} ms" + (f", at most {max(found):.0f}" if times > 1 else ""))


def _browser_times(address: str, folder: Path) -> None:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-precise-memory-info",
        "--js-flags=--expose-gc",
    ):
        options.add_argument(word)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    base = "/".join(address.split("/")[:3])
    try:
        driver.get(address)
        sizes = "return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).reduce((sum, one) => sum + one.transferSize, 0)"
        say(f"{'first load, all files':<45} {driver.execute_script(sizes) / 1000:6.0f} kB")
        driver.get(f"{base}/config/frog")
        say(f"{'editor, loaded':<45} {_loaded(driver):6.0f} ms")
        driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        _keystrokes(driver)
        runs = next(one for one in _runs(base, address) if one["name"] == "long")
        driver.get(f"{base}/run/{runs['id']}")
        drawn = "return document.querySelector('#c-loss canvas') ? performance.now() : 0"
        say(f"{f'run of {STEPS} steps, drawn':<45} {_until(driver, drawn):6.0f} ms")
        _night(driver, folder / "out" / "long.run" / "log.jsonl")
    finally:
        driver.quit()


def _runs(base: str, address: str) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {address.split('token=')[1]}"}
    with urllib.request.urlopen(urllib.request.Request(f"{base}/api/runs", headers=headers), timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["runs"]
        return found


def _loaded(driver: Any) -> float:
    return float(
        _until(
            driver,
            "return performance.timing.loadEventEnd ? performance.getEntriesByType('navigation')[0].loadEventEnd : 0",
        )
    )


def _until(driver: Any, script: str) -> float:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = driver.execute_script(script)
        if found:
            return float(found)
        time.sleep(0.01)
    return float("nan")


def _keystrokes(driver: Any) -> None:
    """From a key to the plan that follows from it, all sections open."""
    script = """
const done = arguments[arguments.length - 1], field = document.getElementById('i-max_train_epochs'), begin = performance.now();
const before = document.getElementById('plan').textContent, watch = () => document.getElementById('plan').textContent !== before;
new MutationObserver((_, me) => { if (watch()) { me.disconnect(); done(performance.now() - begin); } }).observe(document.body, {childList: true, subtree: true});
field.value = arguments[0]; field.dispatchEvent(new Event('input', {bubbles: true}));
"""
    driver.set_script_timeout(60)
    found = [float(driver.execute_async_script(script, str(number))) for number in range(3, 12)]
    say(f"{'a keystroke to its plan, in the browser':<45} {statistics.median(found):6.0f} ms, at most {max(found):.0f}")
    search = """
const box = document.getElementById('search'), begin = performance.now();
box.value = arguments[0]; box.dispatchEvent(new Event('input', {bubbles: true})); document.body.offsetHeight; return performance.now() - begin;
"""
    found = [float(driver.execute_script(search, word)) for word in ("l", "lr", "rate", "max_reso", "")]
    say(
        f"{'a keystroke in the search, 190 options open':<45} {statistics.median(found):6.0f} ms, at most {max(found):.0f}"
    )


def _night(driver: Any, log: Path) -> None:
    """A run that goes on for many steps while its page is open: does the page grow?"""
    heap = "gc(); return performance.memory.usedJSHeapSize"
    found = []
    for part in range(10):
        with log.open("a") as stream:
            for step in range(NIGHT // 10):
                stream.write(_line(STEPS + 1 + part * (NIGHT // 10) + step))
        time.sleep(2.5)
        found.append(driver.execute_script(heap) / 2**20)
    points = driver.execute_script("return document.querySelectorAll('*').length")
    say(f"{f'browser memory over {NIGHT} further steps':<45} {found[0]:6.1f} to {found[-1]:.1f} MiB, {points} elements")


def main() -> int:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    ways.add_parser("lossless").add_argument("folders", nargs="+", type=Path)
    ways.add_parser("speed")
    given = parser.parse_args()
    return lossless(given.folders) if given.way == "lossless" else speed()


if __name__ == "__main__":
    sys.exit(main())
