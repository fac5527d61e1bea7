"""A site in a folder of its own, asked without a server: the same door, addresses and files as `kohyakit ui`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from launcher.ui.app import application
from launcher.ui.folders import Folders
from launcher.ui.site import Site
from launcher.ui.work import Work

SECRET = "a" * 48
HOST = "127.0.0.1:8765"
OWN = {"Origin": f"http://{HOST}"}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for no disk: these tests do not pull the plug."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Its folders are those of the test and nothing else."""
    work = tmp_path / "work"
    work.mkdir()
    return Site(Folders((tmp_path,), ("kohyakit", "ui")), Work(work))


@pytest.fixture
def stranger(site: Site) -> TestClient:
    """A client without the secret."""
    return TestClient(application(site, SECRET, 8765), base_url=f"http://{HOST}", follow_redirects=False)


@pytest.fixture
def page(stranger: TestClient) -> TestClient:
    """A browser that has opened the address that was printed."""
    answer = stranger.get("/", params={"token": SECRET})
    assert answer.status_code == 303
    stranger.headers.update(OWN)
    return stranger


@pytest.fixture
def opened(page: TestClient, tmp_path: Path) -> Callable[..., str]:
    """`opened(path or text, name)`: the ID of a config that was opened through the page."""

    def make(given: Path | str, name: str = "mine.json") -> str:
        path = given if isinstance(given, Path) else tmp_path / name
        if isinstance(given, str):
            path.write_text(given, encoding="utf-8")
        answer = page.post("/api/open", json={"file": str(path)}, headers={"Accept": "application/json"})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["address"]).removeprefix("/config/")

    return make


@pytest.fixture
def config(page: TestClient) -> Callable[..., dict[str, Any]]:
    """`config(id)` is its document; `config(id, what, values)` changes it first."""

    def ask(
        name: str, what: str | None = None, values: dict[str, Any] | None = None, status: int = 200
    ) -> dict[str, Any]:
        if what is None:
            answer = page.get(f"/api/config/{name}")
        else:
            answer = page.post(f"/api/config/{name}/{what}", json=values or {})
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = json.loads(answer.text)
        return found

    return ask
