"""Ends this process soon after another rank of its node (`runtime.beats`), or another node, has fallen silent.

A process that dies resets its connections, and whoever talks to it fails at once. A machine that loses its power or its
network says nothing: NCCL and gloo then wait until their own timeout, half an hour. So each node writes a beat into
the store that the ranks met in, and reads the others'.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from megatron_dpop.runtime import exits
from megatron_dpop.runtime.beats import Board, NodeWatch
from megatron_dpop.runtime.rank import Node, Rank
from megatron_dpop.runtime.rendezvous import master_address

BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0  # longer than anything that keeps Python from running a thread


@contextmanager
def watching_peers() -> Iterator[None]:
    """Watches the other ranks of this node, and the other nodes, within it. Every rank must enter and leave it."""
    rank, node = Rank.from_environment(), Node.from_environment()
    with _watching_node(rank, node), _watching_nodes(rank, node):
        yield


@contextmanager
def _watching_node(rank: Rank, node: Node) -> Iterator[None]:
    """Every rank watches, and has the memory that the first one of the node has made."""
    ranks = rank.local_world_size or 1
    if ranks == 1:
        yield
        return
    store = dist.PrefixStore(f"beats/{node.number}", dist.distributed_c10d._get_default_store())
    watch = None
    try:
        if rank.local_rank == 0:
            descriptor = os.memfd_create("megatron-dpop-beats")
            store.set("board", f"/proc/{os.getpid()}/fd/{descriptor}")
        else:
            descriptor = os.open(store.get("board").decode(), os.O_RDWR | os.O_CLOEXEC)
        board = Board(descriptor, ranks)
        watch = NodeWatch(board, rank, say=_say, lost=_end)
    except OSError as error:  # ranks that are kept from each other's files, as in a container each
        _say(f"warning: the ranks of this node cannot watch each other ({error.strerror})")
    dist.barrier()  # all have the memory
    if watch is not None:
        watch.start()
    try:
        yield
        dist.barrier()  # whoever leaves from here on is not missed
    finally:
        if watch is not None:
            watch.stop()


@contextmanager
def _watching_nodes(rank: Rank, node: Node) -> Iterator[None]:
    """One rank a node does the work."""
    if node.count == 1:
        yield
        return
    if rank.local_rank != 0:
        dist.barrier()
        yield
        dist.barrier()
        return
    store = dist.TCPStore(
        *master_address(rank),
        is_master=False,
        timeout=timedelta(seconds=SILENT_SECONDS),
    )
    watch = PeerWatch(dist.PrefixStore("peers", store), node.number, node.count, _end)
    dist.barrier()  # every node has written its first beat
    watch.start()
    try:
        yield
        dist.barrier()  # whoever leaves from here on is not missed
    finally:
        watch.stop()


class PeerWatch:
    """Calls `lost` with a line of text once a node's beat has not changed for `silent_seconds`."""

    def __init__(
        self,
        store: dist.Store,
        node: int,
        nodes: int,
        lost: Callable[[str], None],
        *,
        beat_seconds: float = BEAT_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._store, self._node, self._nodes, self._lost = store, node, nodes, lost
        self._beat_seconds, self._silent_seconds = beat_seconds, silent_seconds
        self._beats: list[bytes] = [b""] * nodes
        self._stopped = threading.Event()
        self._store.set(str(node), "0")

    def start(self) -> None:
        """Two threads: reading from a store whose host is gone may never return."""
        self._exchanged = time.monotonic()
        self._heard = [self._exchanged] * self._nodes
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, daemon=True, name="peer watch").start()

    def stop(self) -> None:
        self._stopped.set()

    def _exchange(self) -> None:
        names = [str(node) for node in range(self._nodes)]
        count = 0
        while not self._stopped.wait(self._beat_seconds):
            count += 1
            try:
                self._store.set(str(self._node), str(count))
                beats = self._store.multi_get(names)
            except RuntimeError:  # the store's host is gone: nobody is heard from here on
                return
            exchanged = time.monotonic()
            for node, beat in enumerate(beats):
                if beat != self._beats[node]:
                    self._heard[node] = exchanged
            self._beats, self._exchanged = beats, exchanged

    def _judge(self) -> None:
        while not self._stopped.wait(self._beat_seconds / 4):
            who = self._silent()
            if who and not self._stopped.is_set():
                self._lost(f"{who} has been silent for {self._silent_seconds:.0f} s; this run cannot go on without it")
                return

    def _silent(self) -> str | None:
        """A node is judged by what the store last said: a store that says nothing tells nothing of the nodes."""
        if time.monotonic() - self._exchanged > self._silent_seconds:
            return "the node that hosts the store"
        for node, heard in enumerate(self._heard):
            if self._exchanged - heard > self._silent_seconds:
                return f"node {node}"
        return None


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _end(message: str) -> None:
    exits.report("failed", message)
    os._exit(exits.FAILED)  # the main thread is inside a collective that will not return
