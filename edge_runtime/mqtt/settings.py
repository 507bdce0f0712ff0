"""How to reach the broker: the settings, and what follows from them (address, credentials, TLS context)."""

from __future__ import annotations

import re
import ssl
import stat
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from edge_runtime.errors import ConfigError

DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
TLS_SCHEMES, WEBSOCKET_SCHEMES = ("mqtts", "wss"), ("ws", "wss")
DEFAULT_PATH = "/mqtt"
MAX_PACKET_BYTES = 268_435_455
MAX_PASSWORD_BYTES = 65_535

_PATH = re.compile(r"[!-~]*")

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(max_length=1024)]
Word = Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class MqttSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker and the session held with it. Raises ValueError for settings that contradict each other.

    receive_maximum: QoS 1 messages the broker may have unacknowledged with us. max_inflight: messages we may have
    unacknowledged with it; max_outgoing: messages that wait behind those, or for a connection.
    maximum_packet_bytes: the largest packet taken and the largest sent. stable_after_s: a connection that lasted
    this long forgets the failures before it. ack_timeout_s: the longest the broker may take to answer a message or a
    subscription; then the connection is made anew, which sends them again. will_delay_s: how long the broker waits
    before it says "offline". flush_timeout_s: the longest that writing may hold up the loop.
    client: who moves the messages, the frame lane or paho's callbacks; auto: the lane where it can.
    max_unwritten_bytes: what may wait for the socket before further messages wait in the queue; one more message may
    reach beyond it.
    """

    url: str
    root: str = "edge/v1"
    protocol: Literal["5", "3.1.1"] = "5"
    client_id: Name = ""
    username: Name = ""
    password_file: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    keepalive_s: Word = 30
    session_expiry_s: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] = 7 * 24 * 3600
    receive_maximum: Word = 1024
    max_inflight: Word = 100
    max_outgoing: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    maximum_packet_bytes: Annotated[int, msgspec.Meta(ge=1024, le=MAX_PACKET_BYTES)] = 16 * 1024 * 1024
    connect_timeout_s: Seconds = 5.0
    reconnect_min_s: Seconds = 0.2
    reconnect_max_s: Seconds = 30.0
    stable_after_s: Seconds = 60.0
    ack_timeout_s: Seconds = 30.0
    will_delay_s: Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)] = 5
    flush_timeout_s: Seconds = 0.2
    client: Literal["auto", "lane", "callbacks"] = "auto"
    max_unwritten_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        endpoint = parse_url(self.url)
        if not endpoint.tls and (self.ca or self.cert or self.key):
            raise ValueError("ca, cert and key need TLS: write the url with mqtts:// or wss://")
        if endpoint.path and self.client == "lane":
            raise ValueError('client = "lane" needs mqtt:// or mqtts://; over websockets only paho\'s callbacks work')
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together: give both or neither")
        if self.password_file and not self.username:
            raise ValueError("password_file needs a username")
        if self.reconnect_min_s > self.reconnect_max_s:
            raise ValueError("reconnect_min_s must not exceed reconnect_max_s")


class Endpoint(msgspec.Struct, frozen=True):
    """path: what to ask for over websockets; "" without them."""

    host: str
    port: int
    tls: bool
    path: str = ""


def parse_url(url: str) -> Endpoint:
    """The address in "mqtt[s]://host[:port]" or "ws[s]://host[:port][/path]".

    Raises ValueError; never repeats a password.
    """
    if "@" in url:
        raise ValueError("url: must not hold a user name or password; use username and password_file")
    if not url.startswith(tuple(f"{scheme}://" for scheme in DEFAULT_PORTS)):
        raise ValueError(f"url: {url!r} must start with mqtt:// or ws://, or with TLS with mqtts:// or wss://")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"url: {url!r} is no address: {error}") from None
    if port == 0:
        raise ValueError(f"url: the port of {url!r} must be a number from 1 to 65535")
    _check_host(url, parts.hostname or "")
    websockets = parts.scheme in WEBSOCKET_SCHEMES
    if not parts.hostname or (parts.path not in ("", "/") and not websockets) or parts.query or parts.fragment:
        raise ValueError(f"url: {url!r} must be a host and perhaps a port, as in mqtts://broker.local:8883")
    if _PATH.fullmatch(parts.path) is None:
        raise ValueError(f"url: the path of {url!r} holds characters that must be written as %XX")
    return Endpoint(
        host=parts.hostname,
        port=port or DEFAULT_PORTS[parts.scheme],
        tls=parts.scheme in TLS_SCHEMES,
        path=(parts.path or DEFAULT_PATH) if websockets else "",
    )


def _check_host(url: str, host: str) -> None:
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"url: the host of {url!r} is not a host name") from None


def read_password(path: str) -> str:
    """The one line of a password file. Raises ConfigError when everyone may read it, or it is not one line."""
    try:
        mode = Path(path).stat().st_mode
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("mqtt", "password_file", f"{path} cannot be read: {_reason(error)}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        problem = f"{path} is open to every user (mode {stat.S_IMODE(mode):04o}); run: chmod 600 {path}"
        raise ConfigError("mqtt", "password_file", problem)
    lines = text.splitlines()
    if len(lines) != 1 or not lines[0]:
        raise ConfigError(
            "mqtt", "password_file", f"{path} must hold the password on its one line; it has {len(lines)}"
        )
    if len(lines[0].encode()) > MAX_PASSWORD_BYTES:
        raise ConfigError("mqtt", "password_file", f"{path} holds more than {MAX_PASSWORD_BYTES} bytes, MQTT's limit")
    return lines[0]


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho would leave that to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """TLS 1.2 or newer, the broker's certificate and host name always checked.

    Raises ConfigError when a file is missing or is not what its key says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _TlsSocket
    try:
        if settings.ca:
            context.load_verify_locations(settings.ca)
        else:
            context.load_default_certs()
    except OSError as error:
        raise ConfigError("mqtt", "ca", f"{settings.ca} cannot be used: {_reason(error)}") from error
    if settings.cert:
        try:
            context.load_cert_chain(settings.cert, settings.key, password=_no_passphrase)
        except (OSError, ValueError) as error:
            problem = f"{settings.cert} with {settings.key} cannot be used: {_reason(error)}"
            raise ConfigError("mqtt", "cert", problem) from error
    return context


def _no_passphrase() -> str:
    """Stands where OpenSSL would ask at the terminal, which a daemon does not have."""
    raise ValueError("the key is encrypted; a daemon has nobody to ask for its passphrase")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
