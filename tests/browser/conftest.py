"""A real browser before a real server: Debian's chromium and its driver. Where they are missing these tests are skipped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

ROOT = Path(__file__).parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
WAIT = 60.0
# What a server that was killed, and a value that was refused, leave in the browser's console.
EXPECTED = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE_CHUNKED_ENCODING", "status of 4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser these tests, and only they, are skipped by name."""
    if CHROMIUM and DRIVER:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no chromium and chromedriver on this machine"))


class Server:
    """`kohyakit ui` in a process of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder, self.words = folder, words
        self.process: subprocess.Popen[str] | None = None
        self.address = ""
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "launcher",
            "ui",
            *self.words,
            "--no-browser",
            "--json",
            "--dir",
            str(self.folder / "work"),
        ]
        if self.address:
            command += ["--port", self.address.split(":")[2].partition("/")[0]]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
        self.process = subprocess.Popen(command, cwd=self.folder, env=variables, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, "the server ended"
            text += line
        self.address = json.loads(text)["address"]

    def stop(self, number: int = signal.SIGINT) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.communicate(timeout=30)
            self.process = None


class Browser:
    """A few words over selenium: what a person does and sees."""

    def __init__(self, driver: webdriver.Chrome, server: Server) -> None:
        self.driver, self.server = driver, server
        driver.get(server.address)

    def go(self, path: str) -> None:
        self.driver.get(f"http://{self.server.address.split('/')[2]}{path}")

    def one(self, what: str) -> WebElement:
        return self.until(lambda: self.driver.find_element(By.CSS_SELECTOR, what), what)

    def all(self, what: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, what)

    def text(self, what: str = "main") -> str:
        return str(self.one(what).text)

    def until(self, is_so: Callable[[], Any], what: str = "", seconds: float = WAIT) -> Any:
        """Its value as soon as it is true; parts of the page may be exchanged while it is looked at."""
        from selenium.common.exceptions import WebDriverException

        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                found = is_so()
            except WebDriverException:
                found = None
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(
            f"not so after {seconds:.0f} s: {what}\n{self.driver.find_element(By.TAG_NAME, 'body').text[:3000]}"
        )

    def says(self, text: str, where: str = "main", seconds: float = WAIT) -> None:
        self.until(lambda: text in self.text(where), f"{where} says {text!r}", seconds)

    def type(self, name: str, text: str) -> None:
        """Types into the field of an option, as a person who selects what stands there."""
        from selenium.webdriver.common.keys import Keys

        field = self.one(f"#i-{name}")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)

    def click(self, what: str) -> None:
        """Clicks as soon as it can be clicked."""
        self.until(lambda: self._clicked(what), f"click {what}")

    def _clicked(self, what: str) -> bool:
        self.driver.find_element(By.CSS_SELECTOR, what).click()
        return True

    def faults(self) -> list[str]:
        """What the browser complained about: scripts that failed, things that the policy forbade."""
        found = [str(one["message"]) for one in self.driver.get_log("browser") if one["level"] == "SEVERE"]
        return [one for one in found if not any(word in one for word in EXPECTED)]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = Options()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    ):
        options.add_argument(word)
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield found
    found.quit()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A site with photos of frogs and the toy model at hand, the same for all tests: each opens a file of its own."""
    toy, folder = ROOT / "trainer" / "toy", tmp_path_factory.mktemp("site")
    shutil.copytree(toy / "frogs", folder / "frogs" / "16_qfrog")
    found = Server(folder, str(toy))
    yield found
    found.stop()


@pytest.fixture
def browser(driver: webdriver.Chrome, server: Server) -> Iterator[Browser]:
    found = Browser(driver, server)
    yield found
    assert found.faults() == []
    driver.get("about:blank")
