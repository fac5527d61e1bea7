"""What a person asks of a queue while it is worked on: written into its files, and heard by whoever runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from launcher.queue.add import fingerprint
from launcher.queue.folder import Queue
from launcher.queue.jobs import Job
from schemas.problems import error


def pause_one(queue: Queue, number: int) -> Job:
    """A waiting job does not start; a running one saves its state and ends, as soon as its runner has heard of it."""
    with queue.changing():
        job = queue.job(number)
        if job.state == "running":
            return queue.save(replace(job, pause_asked=True))
        if job.state == "waiting":
            return queue.save(job.stands("paused"))
        raise _refusal(job, "can be paused", "waiting or running")


def pause_all(queue: Queue) -> None:
    """Nothing new is started."""
    with queue.changing():
        queue.set_head(paused=True)


def resume_one(queue: Queue, number: int) -> Job:
    """A paused job has its old place again."""
    with queue.changing():
        job = queue.job(number)
        if job.state == "running" and job.pause_asked:
            raise error("job-pausing", "is still saving its state", got=number, fix="ask again in a moment")
        if job.state != "paused":
            raise _refusal(job, "can be resumed", "paused")
        return queue.save(job.stands("waiting", job.reason))


def resume_all(queue: Queue) -> None:
    """What waits is started again."""
    with queue.changing():
        queue.set_head(paused=False)


def retry_one(queue: Queue, number: int) -> Job:
    """A failed or held job waits again, its file taken as it is now. ConfigError `no-file` where that is gone."""
    with queue.changing():
        job = queue.job(number)
        if job.state not in ("failed", "held"):
            raise _refusal(job, "can be tried again", "failed or held")
        if job.fingerprint is not None:
            if not Path(job.file).exists():
                raise error("no-file", "does not exist", file=job.file, fix="put it back, or queue another file")
            job = replace(job, fingerprint=fingerprint(job.file))
        return queue.save(job.stands("waiting"))


def _refusal(job: Job, what: str, states: str) -> Exception:
    fix = {"paused": f"kohyakit queue resume {job.id}", "failed": f"kohyakit queue retry {job.id}",
           "held": f"kohyakit queue retry {job.id}"}.get(job.state, "kohyakit queue list")  # fmt: skip
    return error("wrong-state", f"is {job.state}; only a {states} run {what}", got=job.id, fix=fix)
