from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from certificates import Authority

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt.client import make_client
from edge_runtime.mqtt.settings import MqttSettings, parse_url, read_password


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "path"),
    [
        ("mqtt://broker.local", "broker.local", 1883, False, ""),
        ("mqtts://broker.local", "broker.local", 8883, True, ""),
        ("mqtt://10.0.0.7:2883/", "10.0.0.7", 2883, False, ""),
        ("mqtts://[::1]:8884", "::1", 8884, True, ""),
        ("ws://broker.local", "broker.local", 80, False, "/mqtt"),
        ("wss://broker.local:9001/a/b%20c", "broker.local", 9001, True, "/a/b%20c"),
    ],
)
def test_a_url_names_host_port_tls_and_websockets(url: str, host: str, port: int, tls: bool, path: str) -> None:
    endpoint = parse_url(url)

    assert (endpoint.host, endpoint.port, endpoint.tls, endpoint.path) == (host, port, tls, path)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("broker.local:1883", "must start with mqtt://"),
        ("http://broker.local", "must start with mqtt://"),
        ("mqtt://", "must be a host"),
        ("mqtt://broker.local/topic", "must be a host"),
        ("mqtt://broker.local?x=1", "must be a host"),
        ("mqtt://broker.local:0", "from 1 to 65535"),
        ("mqtt://broker.local:99999", "is no address"),
        ("mqtt://broker.local:mqtt", "is no address"),
        ("mqtt://[::1", "is no address"),
        ("ws://", "must be a host"),
        ("ws://broker.local/mqtt?token=x", "must be a host"),
        ("ws://broker.local/a b", "must be written as %XX"),
    ],
)
def test_a_url_that_is_none_is_refused_with_a_sentence(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        MqttSettings(url=url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="use username and password_file") as caught:
        MqttSettings(url="mqtt://node:s3cret@broker.local")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"ca": "ca.pem"}, "mqtts://"),
        ({"url": "mqtts://b", "cert": "c.pem"}, "both or neither"),
        ({"password_file": "p"}, "needs a username"),
        ({"reconnect_min_s": 5, "reconnect_max_s": 1}, "must not exceed"),
        ({"keepalive_s": 0}, "keepalive_s"),
        ({"receive_maximum": 70_000}, "receive_maximum"),
        ({"protocol": "3.1"}, "protocol"),
        ({"keep_alive": 3}, "keep_alive"),
        ({"client": "paho"}, "client"),
        ({"url": "ws://b", "client": "lane"}, "only paho's callbacks"),
        ({"url": "ws://b", "ca": "ca.pem"}, "wss://"),
        ({"max_unwritten_bytes": 0}, "max_unwritten_bytes"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], problem: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=problem):
        msgspec.convert({"url": "mqtt://broker.local", **settings}, MqttSettings)


@pytest.mark.parametrize(
    ("text", "mode", "problem"),
    [
        (b"secret\n", 0o644, r"open to every user \(mode 0644\); run: chmod 600"),
        (b"", 0o600, "on its one line"),
        (b"a\nb\n", 0o600, "on its one line; it has 2"),
        (b"\xff\n", 0o600, "cannot be read"),
    ],
)
def test_a_password_file_must_be_private_and_one_line(tmp_path: Path, text: bytes, mode: int, problem: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(text)
    path.chmod(mode)

    with pytest.raises(ConfigError, match=problem):
        read_password(str(path))


def test_missing_files_are_named_with_their_key(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=f"mqtt: password_file: {missing} cannot be read: No such file"):
        read_password(missing)
    with pytest.raises(ConfigError, match=f"mqtt: ca: {missing} cannot be used: No such file"):
        make_client(MqttSettings(url="mqtts://b", ca=missing), client_id="c")
    with pytest.raises(ConfigError, match=f"mqtt: cert: {missing} with {missing} cannot be used: No such file"):
        make_client(MqttSettings(url="mqtts://b", ca=str(authority.cert), cert=missing, key=missing), client_id="c")


def test_a_password_longer_than_mqtt_takes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.touch(mode=0o600)
    path.write_text("x" * 65_535)
    assert len(read_password(str(path))) == 65_535

    path.write_text("x" * 65_536)
    with pytest.raises(ConfigError, match="65535 bytes"):
        read_password(str(path))
