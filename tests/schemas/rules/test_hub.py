from __future__ import annotations

from typing import Any

import pytest

from schemas.config import TrainConfig
from schemas.rules import check
from schemas.rules.hub import StatePlace, state_place


def found(**options: Any) -> set[tuple[str, str, str | None]]:
    problems = check(TrainConfig(**options), "sd15")
    return {(problem.severity, problem.code, problem.key) for problem in problems
            if problem.code in ("bad-repository", "no-effect")}  # fmt: skip


@pytest.mark.parametrize("text", ["me/loras/n-state", "me/loras/a/b:v1", "me/loras/n-state:main:dataset"])
def test_places_of_states(text: str) -> None:
    assert state_place(text) is not None


def test_a_whole_place() -> None:
    assert state_place("me/loras/a/b:v1:dataset") == StatePlace("me/loras", "a/b", "v1", "dataset")
    assert state_place("me/loras/n-state") == StatePlace("me/loras", "n-state", None, "model")


@pytest.mark.parametrize("text", ["me", "me/loras", "me/loras/", "me/loras/../x", "me/loras/x:main:models", "/me/l/x"])
def test_what_is_no_place(text: str) -> None:
    assert state_place(text) is None
    assert ("error", "bad-repository", "resume") in found(resume=text, resume_from_huggingface=True)


@pytest.mark.parametrize(("option", "value"), [
    ("huggingface_repo_id", "a/b/c"), ("huggingface_repo_id", "a b"), ("huggingface_repo_type", "models"),
    ("huggingface_path_in_repo", "../x"), ("huggingface_path_in_repo", "a\\b"),
    ("huggingface_repo_visibility", "secret"),
])  # fmt: skip
def test_what_the_hub_could_not_take(option: str, value: str) -> None:
    assert ("error", "bad-repository", option) in found(**{"huggingface_repo_id": "me/loras", option: value})


def test_options_that_need_a_repository_are_named() -> None:
    idle = {"huggingface_path_in_repo": "x", "async_upload": True, "huggingface_token": "hf_x"}
    assert {("note", "no-effect", name) for name in idle} <= found(**idle)
    assert not found(huggingface_repo_id="me/loras", **idle)
    assert not found(resume_from_huggingface=True, resume="me/loras/x", huggingface_token="hf_x")


def test_states_are_uploaded_only_if_there_are_some() -> None:
    wish = {"huggingface_repo_id": "me/loras", "save_state_to_huggingface": True}
    assert found(**wish) == {("warning", "no-effect", "save_state_to_huggingface")}
    assert not found(**wish, save_state=True)
