"""A node that falls silent is noticed by the others, be it one among them or the one that holds the store."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch.distributed as dist

from megatron_dpop.runtime.peers import PeerWatch

BEAT_SECONDS, SILENT_SECONDS = 0.5, 3.0  # a busy machine may keep a thread waiting for a second
HOST = """
import sys, time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
"""


@pytest.fixture
def host() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds the store, and its port."""
    process = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()


class Node:
    def __init__(self, port: int, node: int) -> None:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=60))
        self.lost: list[str] = []
        self.noticed = threading.Event()
        self.watch = PeerWatch(store, node, 2, self._notice, beat_seconds=BEAT_SECONDS, silent_seconds=SILENT_SECONDS)

    def _notice(self, message: str) -> None:
        self.lost.append(message)
        self.noticed.set()


def _pair(port: int) -> tuple[Node, Node]:
    nodes = Node(port, 0), Node(port, 1)
    for node in nodes:
        node.watch.start()
    return nodes


@pytest.mark.slow
def test_a_silent_node_is_named_by_the_other(host: tuple[subprocess.Popen[str], int]) -> None:
    here, other = _pair(host[1])
    time.sleep(1.5 * SILENT_SECONDS)
    assert not here.lost + other.lost, "nodes that beat were taken for silent"
    other.watch.stop()
    assert here.noticed.wait(10 * SILENT_SECONDS)
    assert here.lost[0].startswith("node 1 has been silent for 3 s; ")
    assert not other.lost


@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)], ids=["dead", "frozen"]
)
def test_the_stores_host_is_missed_by_all(host: tuple[subprocess.Popen[str], int], end: signal.Signals) -> None:
    """A frozen host keeps its connections open: reading from its store does not return."""
    nodes = _pair(host[1])
    time.sleep(3 * BEAT_SECONDS)
    os.kill(host[0].pid, end)
    for node in nodes:
        assert node.noticed.wait(10 * SILENT_SECONDS)
        assert node.lost[0].startswith("the node that hosts the store has been silent")
    os.kill(host[0].pid, signal.SIGCONT)
