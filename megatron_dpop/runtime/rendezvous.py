"""Where the ranks meet: the store by which they find each other, and the network interface on which they listen.

On one node nothing may be reached from outside: ranks that our launcher started meet in a file without a name, and
gloo and NCCL listen on the loopback interface alone. Nothing here unpickles what a socket brings.
"""

import os
import socket
from datetime import timedelta

import torch.distributed as dist

from dpop_base.errors import UserError
from megatron_dpop.runtime.rank import STORE_VARIABLE, Rank

LOOPBACK_ADDRESS = "127.0.0.1"
INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def meet(rank: Rank, timeout: timedelta) -> dist.Store:
    """The store that all ranks share. Call it before a process group is made: it chooses their interface too.

    Raises UserError where the environment does not say where to meet.
    """
    if rank.on_one_node:
        for variable in INTERFACE_VARIABLES:
            os.environ[variable] = loopback_interface()
    if rank.world_size == 1:
        return dist.HashStore()
    descriptor = os.environ.get(STORE_VARIABLE)
    if descriptor:
        return dist.FileStore(f"/proc/self/fd/{descriptor}", -1)
    store = _tcp_store(rank, timeout)
    # The launcher of torchrun uses the same store, and may start the ranks a second time.
    return dist.PrefixStore(f"megatron_dpop/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def master_address(rank: Rank) -> tuple[str, int]:
    """Where the store of a launcher other than ours, or of several nodes, is reached."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UserError(
            f"WORLD_SIZE is {rank.world_size}, but MASTER_ADDR ({address!r}) and MASTER_PORT ({port!r}) do not say "
            "where the ranks meet; unset RANK and WORLD_SIZE, or start with torchrun"
        )
    # On one node no name needs to be resolved: the store of torchrun's launcher listens on every address.
    return (LOOPBACK_ADDRESS if rank.on_one_node else address), int(port)


def _tcp_store(rank: Rank, timeout: timedelta) -> dist.TCPStore:
    address, port = master_address(rank)
    hosts = rank.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not (hosts and rank.on_one_node):
        return dist.TCPStore(address, port, rank.world_size, is_master=hosts, timeout=timeout)
    listener = socket.create_server((LOOPBACK_ADDRESS, port))  # left to itself the store listens on every address
    return dist.TCPStore(
        address, port, rank.world_size, is_master=True, timeout=timeout, master_listen_fd=listener.detach()
    )


def loopback_interface() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name in ("lo", "lo0")), "lo")
