"""An sshd on this machine, for tests that measure over ssh."""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hwprune.remote import Destination

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
if shutil.which("ssh") is None:
    SSHD = None


@dataclass
class Server:
    """A running sshd that knows one key."""

    port: int
    folder: Path
    known_hosts: Path
    process: subprocess.Popen[bytes]

    def left(self) -> list[Path]:
        """Return what stayed in the folder for temporary files that its programs are given."""
        return sorted((self.folder / "tmp").glob("hwprune-bench-*"))

    def options(self) -> list[str]:
        return [
            "-F", "none", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o",
            "GlobalKnownHostsFile=none", "-i", str(self.folder / "key"),
        ]  # fmt: skip

    def where(self, python: str = sys.executable) -> Destination:
        return Destination(None, "127.0.0.1", self.port, python)


@contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Start one whose keys are in a folder."""
    assert SSHD is not None
    for name in ("host", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True
        )
    (folder / "authorized").write_text((folder / "key.pub").read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "tmp").mkdir()  # its own: other tests run beside
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\n"
        f"AuthorizedKeysFile {folder / 'authorized'}\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\n"
        f"SetEnv TMPDIR={folder / 'tmp'}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL
    )
    try:
        known = folder / "known"
        known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Server(port, folder, known, process)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cutting(port: int, moment: int | str) -> Iterator[int]:
    """Pass one connection on to a port until a moment; return the port to connect to.

    Args:
        port: where sshd listens.
        moment: after so many bytes both ends are reset; ``silence``: when nothing has passed for
            0.7 s; ``dead``: from then on nothing passes, and nobody is told.
    """
    over = threading.Event()

    def serve() -> None:
        near, _ = listening.accept()
        far = socket.create_connection(("127.0.0.1", port))
        passed = 0
        with near, far:
            while isinstance(moment, str) or passed < moment:
                ready, _, _ = select.select([near, far], [], [], 0.7)
                if not ready:  # a log-in takes less, a measurement more
                    break
                for end in ready:
                    most = 65536 if isinstance(moment, str) else max(1, moment - passed)
                    part = end.recv(most)
                    passed += len(part)
                    (far if end is near else near).sendall(part)
            if moment == "dead":
                over.wait(30)
            for end in (near, far):  # a reset in place of an orderly end
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        over.set()
        thread.join(30)
