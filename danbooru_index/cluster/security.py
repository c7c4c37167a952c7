"""What answers at a Ray's address, within seconds; and who may command it.

Its token file, and heads that strangers could reach, are looked at before a cluster is used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import logging
import os
import re
import socket
from enum import Enum
from pathlib import Path

from danbooru_index.errors import ClusterError

log = logging.getLogger(__name__)

ANSWER_S = 10.0
SAFER = "start it with RAY_AUTH_MODE=token (ray get-auth-token --generate), or on loopback only"
CONTROL_STORE_PORT = 6379
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
REMEDY = "check --address, or start a head node with ray start --head"
NO_PROXY = (("grpc.enable_http_proxy", 0),)


class Answer(Enum):
    """Who is at a port. OPEN: a GCS that asks for no token; GUARDED: one that asks for another."""

    OPEN = "open"
    GUARDED = "guarded"
    CLIENT_SERVER = "client server"
    SILENT = "silent"
    OTHER = "other"


def check_address(address: str) -> None:
    """Raise `ClusterError` unless a Ray control store answers at `address` within seconds; name the
    right address where the dashboard's was given. Not asked: `auto`, which Ray resolves itself.
    """
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address}: the address of a Ray dashboard and job server. A build joins a cluster by"
            " the address of its control"
            f" store{_named_by(address.partition('://')[2].partition('/')[0])}; to submit a job"
            f" there: ray job submit --address {address} --working-dir . -- python jobs/build.py"
            " ... (--address or RAY_ADDRESS says which)"
        )
    scheme, _, place = address.rpartition("://")
    host, _, port = place.rpartition(":")
    if not _is_port(port):
        return
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        # asked by Ray itself, which has the certificates
        _refuse_nobody(address, host, int(port))
        return
    answer = ask_control_store(host, int(port))
    if answer in (Answer.OPEN, Answer.GUARDED) or (
        scheme == "ray" and answer is Answer.CLIENT_SERVER
    ):
        return
    _refuse_nobody(address, host, int(port))
    raise ClusterError(f"Ray at {address}: {_what_is_there(host, int(port), answer)}")


def _refuse_nobody(address: str, host: str, port: int) -> None:
    """Raise `ClusterError` where no program listens."""
    try:
        socket.create_connection((host.strip("[]"), port), timeout=ANSWER_S).close()
    except OSError as error:
        raise ClusterError(
            f"Ray at {address}: nobody answers there ({error.strerror or error}); {REMEDY}"
        ) from None


def _is_port(word: str) -> bool:
    return word.isascii() and word.isdigit()


def _what_is_there(host: str, port: int, answer: Answer) -> str:
    if answer is Answer.CLIENT_SERVER:
        return (
            f"that is the port of its client server: pass ray://{host}:{port}, or the control"
            " store's port"
        )
    if answer is Answer.SILENT:
        return (
            f"no answer in {ANSWER_S:.0f} s: not the control store of a Ray, or one that hangs;"
            f" {REMEDY}"
        )
    if is_dashboard(host, port):
        return (
            "that is the port of its dashboard and job server; pass the control"
            f" store's{_named_by(f'{host}:{port}')}, or submit the job: ray job submit --address"
            f" http://{host}:{port} --working-dir . -- python jobs/build.py ..."
        )
    return f"what answers there is not the control store of a Ray; {REMEDY}"


def ask_control_store(host: str, port: int, *, token: bool = True) -> Answer:
    """Who answers a GCS health check, with this user's token or without; Ray has no public call."""
    import grpc

    known = read_token() if token else ""
    metadata = [("authorization", f"Bearer {known}")] if known else None
    try:
        with grpc.insecure_channel(f"{host}:{port}", options=NO_PROXY) as channel:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=ANSWER_S, metadata=metadata)
    except grpc.RpcError as error:
        kinds = {
            grpc.StatusCode.UNAUTHENTICATED: Answer.GUARDED,
            grpc.StatusCode.UNIMPLEMENTED: Answer.CLIENT_SERVER,
            grpc.StatusCode.DEADLINE_EXCEEDED: Answer.SILENT,
        }
        return kinds.get(error.code(), Answer.OTHER)
    return Answer.OPEN


def read_token() -> str:
    """The token that Ray would send, of the environment or its file; empty for none."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return ""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    try:
        return token_file().read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def token_file() -> Path:
    """Where Ray keeps a user's token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(named) if named else Path("~/.ray/auth_token").expanduser()


def is_dashboard(host: str, port: int) -> bool:
    """Whether a Ray dashboard answers: it tells everybody which authentication it wants."""
    return b'"authentication_mode"' in _get(host, port, "/api/authentication_mode")


def serves_jobs(host: str, port: int) -> bool:
    """Whether a job server there lists its jobs to whoever asks, without a token."""
    return bool(_get(host, port, "/api/jobs/"))


def _named_by(dashboard: str) -> str:
    """The GCS address that a dashboard's processes name, or the usual one."""
    host, _, port = dashboard.rpartition(":")
    token = read_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    page = _get(host, int(port), "/nodes?view=summary", headers) if _is_port(port) else b""
    found = re.search(rb"--gcs-address=([A-Za-z0-9.\[\]-]+:\d+)", page)
    return (
        f", {found[1].decode()}" if found else f", usually {host or dashboard}:{CONTROL_STORE_PORT}"
    )


def _get(host: str, port: int, path: str, headers: dict[str, str] | None = None) -> bytes:
    """The body of an HTTP answer, empty unless it is a good one."""
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_S / 2)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        return (answer.read() or b" ") if answer.status == 200 else b""
    except (OSError, http.client.HTTPException, ValueError):
        return b""
    finally:
        connection.close()


def protect_token() -> None:
    """Make Ray's token file private (mode 600): Ray leaves it readable by all."""
    path = token_file()
    with contextlib.suppress(OSError):
        mode = path.stat().st_mode
        if mode & 0o077:
            path.chmod(0o600)
            log.warning(f"{path}: was readable by others; now only by you (mode 600)")


def refuse_open_head(gcs_address: str, dashboard: str | None) -> None:
    """Raise `ClusterError` for a Ray that strangers can command: not on loopback, and no token.

    Its control store counts by the address it gives itself, its job server by whether another
    address of this machine reaches it. A control store that also answers elsewhere is only warned
    about: Ray binds it to all addresses.
    """
    host, _, port = gcs_address.rpartition(":")
    if _is_open(host, int(port)):
        if not _is_loopback(host):
            raise ClusterError(
                f"the Ray head at {gcs_address} asks for no token, and whoever reaches it can run"
                f" any command: {SAFER}"
            )
        if any(_is_open(other, int(port)) for other in _own_addresses()):
            log.warning(
                f"warning: the Ray head at {gcs_address} answers other addresses too, without a"
                " token"
            )
    where, _, web_port = (dashboard or "").rpartition(":")
    for other in {where, *_own_addresses()} if web_port.isdigit() else ():
        if not _is_loopback(other) and serves_jobs(other, int(web_port)):
            raise ClusterError(
                f"Ray's job server at {other}:{web_port} runs any command for whoever reaches it:"
                f" {SAFER}"
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
