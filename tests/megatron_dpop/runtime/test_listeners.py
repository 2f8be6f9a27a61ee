"""A whole run on one node: who can reach it, and what a stranger who does can make it do."""

import base64
import os
import pickle
import shutil
import socket
import threading
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from tests.commands import start, write_world
from tests.processes import Listener, descendants, listeners

pytestmark = pytest.mark.slow

STEPS = 6


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


@dataclass
class Seen:
    code: int = -1
    output: str = ""
    listeners: set[Listener] = field(default_factory=set)
    executed: bool = False
    log: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A run whose every port gets a pickle from a stranger, in a world where the host's own name does not resolve."""
    folder = tmp_path_factory.mktemp("listeners")
    config = write_world(folder, train={"steps": STEPS}, checkpoint={"every": 3, "export_hf": True})
    process = start("train", config, before=_nameless_host())
    found = Seen()
    trap = folder / "executed"
    attacks = []
    while process.poll() is None:
        now = listeners(descendants(process.pid))
        for listener in now - found.listeners:
            attack = threading.Thread(target=_attack, args=(listener, process.pid, trap), daemon=True)
            attack.start()
            attacks.append(attack)
        found.listeners |= now
    assert process.stdout is not None
    found.code, found.output, found.executed = process.returncode, process.stdout.read(), trap.exists()
    for attack in attacks:
        attack.join(10)
    return found


def _nameless_host() -> tuple[str, ...]:
    """In front of a command: it runs where the host has a name that nobody knows. Only root may ask for that."""
    if os.getuid() != 0 or shutil.which("unshare") is None:
        return ()
    return ("unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$0" "$@"')


def _attack(listener: Listener, launcher: int, trap: Path) -> None:
    """A pickle, bare and as the state of torchrun's rendezvous, to whoever listens."""
    payload = pickle.dumps(Payload(trap))
    host = "127.0.0.1" if listener.address in ("0.0.0.0", "::") else listener.address
    for message in (payload, len(payload).to_bytes(8, "little") + payload, len(payload).to_bytes(8, "big") + payload):
        try:
            with socket.create_connection((host, listener.port), timeout=1) as connection:
                connection.sendall(message)
        except OSError:
            return
    try:
        store = dist.TCPStore(host, listener.port, is_master=False, timeout=timedelta(seconds=1))
        store.set(f"torch.rendezvous.megatron-dpop-{launcher}", base64.b64encode(payload).decode())
    except RuntimeError:
        return


def test_nobody_listens_outside_loopback(seen: Seen) -> None:
    assert seen.code == 0, seen.output
    assert seen.listeners, "the ranks of a run listen somewhere; this test looked at the wrong processes"
    assert not {listener for listener in seen.listeners if not listener.on_loopback}


def test_what_a_stranger_sends_is_not_run_and_ends_nothing(seen: Seen) -> None:
    assert not seen.executed
    assert seen.code == 0, seen.output
    assert f"finished: trained {STEPS} steps" in seen.output
