"""Whether the processes of a run reach each other: asked before anything long begins, answered with names."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from trainer.watch.stopping import TrainingStopped

SECONDS = 60.0  # for an all-reduce of one number: milliseconds, but many machines take a while to join the first time
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited",
        "NCCL communicator was aborted", "ncclRemoteError")  # fmt: skip


@contextmanager
def explained() -> Iterator[None]:
    """Turns a failed meeting of the processes into where it was and what usually is in the way."""
    try:
        yield
    except (RuntimeError, OSError) as fault:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise TrainingStopped(
            f"{myself()} could not join the other processes at {place}: {str(fault).splitlines()[0]}. Check that every "
            "machine is started with the same --machines, --main-ip and --main-port and that no firewall is between; "
            "with several network cards name the right one in GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
        ) from fault


def self_test(accelerator: Accelerator, seconds: float = SECONDS) -> None:
    """One all-reduce over all processes; TrainingStopped naming whom it did not reach within `seconds`."""
    count, rank = accelerator.num_processes, accelerator.process_index
    if count == 1:
        return
    store = dist.distributed_c10d._get_default_store()
    with socket.create_server((own_address(), 0), backlog=count) as door:
        store.set(f"kohyakit/{rank}", json.dumps([myself(), *door.getsockname()[:2]]))
        total = torch.tensor(float(rank + 1), device=accelerator.device)
        fault = _reduced(total, seconds)
        if fault is None and total.item() == count * (count + 1) / 2:
            return
        blocked = _unreached(store, rank, count) or "all are reachable, the transport itself fails"
    raise TrainingStopped(
        f"the self-test of the connection failed in {myself()}: {fault or f'a sum of {total.item():g}'}; {blocked}. "
        "Check the firewall, and that all machines use the same network card (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
    )


def _reduced(total: torch.Tensor, seconds: float) -> str | None:
    """Sums `total` over all processes in place; why it failed, or None."""
    began = time.monotonic()
    try:
        work = dist.all_reduce(total, async_op=True)
        assert work is not None
        while not work.is_completed():
            if time.monotonic() - began > seconds:
                return f"no answer within {seconds:g} s"
            time.sleep(0.002)
        work.wait()
    except RuntimeError as fault:
        return str(fault).splitlines()[0]
    return None


def _unreached(store: Any, rank: int, count: int) -> str:
    """The processes that have not come or cannot be reached from here, by plain TCP, in words."""
    found = []
    for other in range(count):
        if other == rank:
            continue
        if not store.check([f"kohyakit/{other}"]):
            found.append(f"process {other} has not come")
            continue
        name, address, port = json.loads(store.get(f"kohyakit/{other}"))
        try:
            socket.create_connection((address, port), timeout=3).close()
        except OSError as fault:
            found.append(f"{name} cannot be reached at {address} ({fault.strerror or fault})")
    return ", ".join(found)


def own_address() -> str:
    """The address under which this machine reaches the main one, on which the others reach it too."""
    main = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        kind, _, _, _, place = socket.getaddrinfo(main, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing: the system only looks up its way
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def myself() -> str:
    """This process among those of the run, in words."""
    return f"process {os.environ.get('RANK', '0')} on {socket.gethostname()}"


def lost_peer(fault: BaseException) -> bool:
    """Whether a fault only says that another process of the run has ended; that one has told its own reason."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and any(words in str(fault) for words in LOST)
