"""What Linux says of a process and all that it started: who they are, and where they listen."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

LISTENING = "0A"


@dataclass(frozen=True)
class Listener:
    address: str
    port: int

    @property
    def on_loopback(self) -> bool:
        return self.address in ("::1", "::ffff:127.0.0.1") or self.address.startswith("127.")


def descendants(root: int) -> set[int]:
    """The process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, UnicodeDecodeError):
                continue
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def alive(pid: int) -> bool:
    """A zombie is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def listeners(pids: set[int]) -> set[Listener]:
    """The TCP sockets on which these processes listen."""
    inodes = {inode for pid in pids for inode in _socket_inodes(pid)}
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == LISTENING and columns[9] in inodes:
                address, port = columns[1].split(":")
                words = [address[at : at + 8] for at in range(0, len(address), 8)]
                packed = b"".join(bytes.fromhex(word)[::-1] for word in words)
                found.add(Listener(socket.inet_ntop(family, packed), int(port, 16)))
    return found


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            target = os.readlink(descriptor.path)
            if target.startswith("socket:["):
                found.add(target[len("socket:[") : -1])
    except OSError:
        pass
    return found
