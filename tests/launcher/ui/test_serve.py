"""From the command line to a server that answers: port, address, folders, packages."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from launcher.commands import ui as words
from launcher.ui import serve
from schemas.problems import ConfigError


@pytest.fixture
def server(tmp_path: Path):
    """`server(*words)`: the address of a real server in a process of its own."""
    found: list[subprocess.Popen[str]] = []

    def start(*given: str) -> str:
        command = [
            sys.executable,
            "-m",
            "launcher",
            "ui",
            *given,
            "--no-browser",
            "--json",
            "--dir",
            str(tmp_path / "w"),
        ]
        root = str(Path(__file__).parents[3])
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}, cwd=tmp_path
        )
        found.append(process)
        assert process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            text += process.stdout.readline()
        address: str = json.loads(text)["address"]
        return address

    yield start
    for process in found:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


def test_a_real_server_answers_ends_and_is_the_same_when_it_comes_back(server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = server("--port", port)
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with browser.open(address, timeout=20) as answer:
        assert "What do you want to train?" in answer.read().decode()
        assert "token" not in answer.url
    with urllib.request.urlopen(address.replace("/?", "/api/presets?"), timeout=20) as answer:
        assert json.load(answer)["presets"]
    secret = (tmp_path / "w" / ".kohyakit-ui" / "secret").read_text()
    assert secret in address


def test_the_server_loads_no_tensor_library() -> None:
    code = "import sys, launcher.ui.app, launcher.ui.serve; print([n for n in ('torch', 'numpy', 'safetensors', 'transformers') if n in sys.modules])"
    root = str(Path(__file__).parents[3])
    assert subprocess.check_output([sys.executable, "-c", code], cwd=root, text=True) == "[]\n"


def test_a_port_that_is_taken_is_said_and_the_next_one_is_found(kohyakit, tmp_path: Path, monkeypatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = kohyakit("ui", "--port", port, "--dir", tmp_path / "w", "--no-browser")
        assert said.exit_code == 1
        assert f"{port}" in said.stderr
        assert "--port 0" in said.stderr
        monkeypatch.setattr(serve, "FIRST_PORT", port)
        with serve.listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] != port


@pytest.mark.parametrize("port", ["-1", "70000", "x"])
def test_what_is_no_port_is_a_wrong_command_line(kohyakit, port: str) -> None:
    assert kohyakit("ui", "--port", port).exit_code == 2


def test_a_path_that_is_not_there_is_said(kohyakit, tmp_path: Path) -> None:
    said = kohyakit("ui", tmp_path / "none.json", "--dir", tmp_path / "w")
    assert (said.exit_code, "neither a file nor a folder" in said.stderr) == (1, True)
    assert not (tmp_path / "w").exists()


def test_a_work_folder_that_cannot_be_made_is_said(kohyakit, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = kohyakit("ui", "--dir", tmp_path / "file" / "w")
    assert (said.exit_code, "--dir" in said.stderr) == (1, True)


def test_missing_packages_are_one_line_with_the_command_that_brings_them(kohyakit, monkeypatch) -> None:
    monkeypatch.setattr(words.importlib.util, "find_spec", lambda name: None)
    said = kohyakit("ui")
    assert said.exit_code == 1
    assert "starlette" in said.stderr
    assert "kohyakit[ui]" in said.stderr


def test_the_address_leads_to_what_was_given(tmp_path: Path, preset, photos: Path, lora, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, start in (
        (str(preset()), "/config/frog"),
        (str(lora()), "/lora?file="),
        (str(photos), "/images?dir="),
        (None, "/?"),
        (str(tmp_path / "w"), "/?"),
    ):
        served = serve.prepare([given] if given else [], tmp_path / "w", host="127.0.0.1", port=0)
        served.listener.close()
        assert served.address.split("/", 3)[3].startswith(start[1:]), served.address
        assert "token=" in served.address


def test_the_folders_are_those_that_were_named(tmp_path: Path, monkeypatch) -> None:
    for name in ("here", "models", "files", "w", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "files" / "a.json").write_text('{"LoRA_type": "Standard"}')
    monkeypatch.chdir(tmp_path / "here")
    served = serve.prepare(
        [str(tmp_path / "files" / "a.json"), str(tmp_path / "models")], tmp_path / "w", host="127.0.0.1", port=0
    )
    served.listener.close()
    roots = served.door.app.state.site.folders.roots  # type: ignore[attr-defined]
    assert {root.name for root in roots} == {"here", "models", "files", "w"}


def test_a_host_that_is_not_ours_is_said() -> None:
    with pytest.raises(ConfigError) as said:
        serve.listen("203.0.113.1", 0)
    assert said.value.problems[0].code == "no-host"
