"""Who may command a Ray: its token file, and heads that strangers could reach. Called before a cluster is used."""

from __future__ import annotations

import contextlib
import ipaddress
import socket

from danbooru_index.cluster.addresses import Answer, ask_control_store, serves_jobs, token_file
from danbooru_index.errors import ClusterError
from danbooru_index.progress import tell


def protect_token() -> None:
    """Make Ray's token file readable by its owner only: `ray get-auth-token --generate` leaves it open to all."""
    path = token_file()
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if mode & 0o077:
            path.chmod(0o600)
            tell(f"{path}: was readable by others; now only by you (mode 600)")


def refuse_open_head(gcs_address: str, dashboard: str | None) -> None:
    """Raise `ClusterError` for a Ray that strangers can command: beyond loopback, and without a token.

    Its control store counts by the address it gives itself, its job server by whether another address of this machine
    reaches it. A control store that also answers elsewhere is only warned about: Ray binds it to all addresses.
    """
    host, _, port = gcs_address.rpartition(":")
    remedy = "start it with RAY_AUTH_MODE=token (ray get-auth-token --generate), or on loopback only"
    if _is_open(host, int(port)):
        if not _is_loopback(host):
            raise ClusterError(
                f"the Ray head at {gcs_address} asks for no token, and whoever reaches it can run any command: {remedy}"
            )
        if any(_is_open(other, int(port)) for other in _own_addresses()):
            tell(f"warning: the Ray head at {gcs_address} answers other addresses too, without a token")
    where, _, web_port = (dashboard or "").rpartition(":")
    for other in {where, *_own_addresses()} if web_port.isdigit() else ():
        if not _is_loopback(other) and serves_jobs(other, int(web_port)):
            raise ClusterError(
                f"Ray's job server at {other}:{web_port} runs any command for whoever reaches it: {remedy}"
            )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _own_addresses() -> list[str]:
    """Addresses of this machine that others can reach (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            own = str(probe.getsockname()[0])
        except OSError:
            return []
    return [] if _is_loopback(own) else [own]


def _is_open(host: str, port: int) -> bool:
    """Whether a control store answers a question that carries no token."""
    return ask_control_store(host, port, token=False) is Answer.OPEN
