"""Options of the Hugging Face hub: what can be known of them before anybody asks the hub (trap T34)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from schemas.config import TrainConfig, table
from schemas.problems import Problem
from schemas.rules.registry import rule

KINDS = ("model", "dataset", "space")
REPO = re.compile(r"(?:[\w.-]{1,96}/)?[\w.-]{1,96}")
FOR_UPLOADS = ("huggingface_repo_type", "huggingface_path_in_repo", "huggingface_repo_visibility",
               "save_state_to_huggingface", "async_upload")  # fmt: skip


@dataclass(frozen=True)
class StatePlace:
    """A training state on the hub."""

    repo: str
    path: str
    revision: str | None
    kind: str


def state_place(text: str) -> StatePlace | None:
    """`owner/repo/path[:revision[:type]]` (reference section 11.3); None when it is not that."""
    found = re.fullmatch(r"(?P<repo>[\w.-]+/[\w.-]+)/(?P<path>[^:]+)(?::(?P<revision>[^:]*))?(?::(?P<kind>\w+))?", text)
    if not found or not _inside(found["path"]) or (found["kind"] or "model") not in KINDS:
        return None
    return StatePlace(found["repo"], found["path"].strip("/"), found["revision"] or None, found["kind"] or "model")


def _inside(path: str) -> bool:
    return "\\" not in path and ".." not in path.split("/") and path.strip("/") not in ("", ".")


@rule
def hub_names(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """A repository, its type, folder and visibility must be such that the hub can take them."""
    repo, kind, folder = config.huggingface_repo_id, config.huggingface_repo_type, config.huggingface_path_in_repo
    if repo and not REPO.fullmatch(repo):
        yield Problem(code="bad-repository", key="huggingface_repo_id", got=repo,
                      must="must be OWNER/NAME, of letters, digits, - _ and .", fix="name your repository")  # fmt: skip
    if kind and kind not in KINDS:
        yield Problem(code="bad-repository", key="huggingface_repo_type", got=kind, must=f"must be {', '.join(KINDS)}",
                      fix="--huggingface_repo_type model")  # fmt: skip
    if folder and not _inside(folder):
        yield Problem(code="bad-repository", key="huggingface_path_in_repo", got=folder,
                      must="must be a folder inside the repository, with /", fix="e.g. loras/n0m3")  # fmt: skip
    if config.huggingface_repo_visibility not in (None, "", "private", "public"):
        yield Problem(code="bad-repository", key="huggingface_repo_visibility", got=config.huggingface_repo_visibility,
                      must="must be private or public", fix="--huggingface_repo_visibility private")  # fmt: skip


@rule
def hub_state(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """A state on the hub needs its whole place; states are uploaded only if some are saved."""
    if config.resume_from_huggingface and not (config.resume and state_place(config.resume)):
        yield Problem(code="bad-repository", key="resume", got=config.resume,
                      must="must be OWNER/REPO/PATH[:REVISION[:TYPE]] with resume_from_huggingface",
                      fix="name the state's folder in its repository")  # fmt: skip
    kept = config.save_state or config.save_state_on_train_end
    if config.huggingface_repo_id and config.save_state_to_huggingface and not kept:
        yield Problem(code="no-effect", severity="warning", key="save_state_to_huggingface", got=True,
                      must="has no effect: no state is saved", fix="--save_state")  # fmt: skip


@rule
def hub_without_repository(config: TrainConfig, family: str | None) -> Iterator[Problem]:
    """Options of uploads without a repository to upload to."""
    if config.huggingface_repo_id:
        return
    options = table()
    names = FOR_UPLOADS if config.resume_from_huggingface else (*FOR_UPLOADS, "huggingface_token")
    for name in names:
        value = getattr(config, name)
        if value != options[name].default:
            yield Problem(code="no-effect", severity="note", key=name, got="***" if options[name].secret else value,
                          must="has no effect: it matters only with huggingface_repo_id")  # fmt: skip
