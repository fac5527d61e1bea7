"""A hub in memory, with what trainer.output.hub asks of huggingface_hub's client."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class FakeHub:
    """`files` by "repository:path"; `wrong` maps a method to what it raises, one after the other."""

    def __init__(self, **wrong: list[Exception]) -> None:
        self.wrong, self.private = wrong, True
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.thread: set[str] = set()

    def _called(self, name: str, **said: Any) -> None:
        self.calls.append((name, said))
        self.thread.add(threading.current_thread().name)
        if self.wrong.get(name):
            raise self.wrong[name].pop(0)

    def whoami(self) -> dict[str, str]:
        self._called("whoami")
        return {"name": "me"}

    def create_repo(self, repo: str, *, private: bool, repo_type: str, exist_ok: bool) -> Any:
        self._called("create_repo", private=private)
        return SimpleNamespace(repo_id=repo if "/" in repo else f"me/{repo}")

    def auth_check(self, repo: str, *, repo_type: str, write: bool = False) -> None:
        self._called("auth_check", repo=repo, write=write)

    def repo_info(self, repo: str, *, repo_type: str) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, repo_type: str) -> None:
        self._called("upload_file", path=path_in_repo)
        self.files[f"{repo_id}:{path_in_repo}"] = Path(path_or_fileobj).read_bytes()

    def upload_folder(self, *, folder_path: str, path_in_repo: str, repo_id: str, repo_type: str) -> None:
        self._called("upload_folder", path=path_in_repo)
        for file in Path(folder_path).iterdir():
            self.files[f"{repo_id}:{path_in_repo}/{file.name}"] = file.read_bytes()

    def list_repo_files(self, repo: str, *, revision: str | None, repo_type: str) -> list[str]:
        self._called("list_repo_files", revision=revision, repo_type=repo_type)
        return [name.partition(":")[2] for name in self.files if name.startswith(f"{repo}:")]

    def snapshot_download(
        self, repo: str, *, revision: str | None, repo_type: str, local_dir: Path, allow_patterns: list[str]
    ) -> None:
        self._called("snapshot_download", revision=revision, repo_type=repo_type)
        for name, data in self.files.items():
            path = name.partition(":")[2]
            if path.startswith(allow_patterns[0].removesuffix("*")):
                (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
                (local_dir / path).write_bytes(data)
