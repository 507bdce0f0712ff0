from __future__ import annotations

import select
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import WAIT_S, Broker
from certificates import Authority
from driving import confirmed, drive, receive
from scripted import Scripted

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.records import Outgoing

MakeClient = Callable[..., MqttClient]


@pytest.fixture(params=["lane", "callbacks"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every test here that makes a client runs over both."""
    return str(request.param)


@pytest.mark.broker
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_password_file_lets_us_in_and_a_wrong_one_is_refused(
    make_client: MakeClient, start_broker: Callable[..., Broker], tmp_path: Path, protocol: str
) -> None:
    broker = start_broker(users={"node": "s3cret"})
    settings = {"protocol": protocol, "username": "node", "reconnect_max_s": 0.2}
    for name, text in (("right", "s3cret\n"), ("wrong", "guess\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)

    client = make_client(broker.url, settings={**settings, "password_file": str(tmp_path / "right")})
    drive(client, lambda: client.connected)
    refused = make_client(
        broker.url, settings={**settings, "password_file": str(tmp_path / "wrong")}, client_id="other"
    )
    drive(refused, lambda: refused.counters.refused == 1)

    assert refused.reason == "Not authorized"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.mark.broker
def test_a_client_certificate_opens_a_tls_connection_and_large_messages_come_through(
    make_client: MakeClient, start_broker: Callable[..., Broker], authority: Authority
) -> None:
    """One TLS record may hold several packets, and select does not see what OpenSSL has already read."""
    broker = start_broker(authority=authority, client_certificates=True)
    own = authority.issue("node")
    files = {"ca": str(authority.cert), "cert": str(own.cert), "key": str(own.key)}
    client = make_client(broker.url, settings=files, subscriptions=[("in/#", 1)])
    drive(client, lambda: client.subscribed)
    probe = broker.probe("out/#")
    sizes = [10, 100_000, 0, 16_384, 50_000, 1] * 20

    for size in sizes:
        probe.publish("in/a", bytes(size), qos=0)
    messages = receive(client, len(sizes))
    token = client.publish(Outgoing("out/a", bytes(300_000), qos=1))

    assert [len(m.payload) for m in messages] == sizes
    assert confirmed(client, 1) == [(token, "")]
    assert len(probe.wait_for(1)[0].payload) == 300_000


def test_packets_that_share_a_tls_record_are_all_read_at_once(make_client: MakeClient, authority: Authority) -> None:
    """After the first of them the rest lies inside OpenSSL, where select cannot see it."""
    own = authority.issue("broker", hosts=("127.0.0.1",))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.cert, own.key)
    scripted = Scripted(tls=context)
    client = make_client(scripted.url, settings={"ca": str(authority.cert)})
    scripted.welcome(client)

    scripted.send(b"".join(scripted.published(b"a", b"%d" % n) for n in range(50)))
    select.select([client.fileno()], [], [], WAIT_S)
    messages = client.poll(0)
    scripted.close()

    assert [int(m.payload) for m in messages] == list(range(50))


@pytest.mark.broker
def test_a_broker_whose_certificate_we_cannot_trust_is_refused(
    make_client: MakeClient, start_broker: Callable[..., Broker], authority: Authority, tmp_path: Path
) -> None:
    broker = start_broker(authority=authority)
    client = make_client(broker.url, settings={"ca": str(Authority(tmp_path / "other").cert)})
    drive(client, lambda: client.counters.failures == 2)

    assert client.reason.startswith("certificate verify failed: ")
    assert client.counters.connects == 0


@pytest.mark.broker
def test_a_broker_with_a_certificate_for_another_host_is_refused(
    make_client: MakeClient, start_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = start_broker(authority=authority, hosts=("elsewhere.local",))
    client = make_client(broker.url, settings={"ca": str(authority.cert)})
    drive(client, lambda: client.counters.failures == 2)

    assert client.reason.startswith("certificate verify failed: Hostname mismatch")
    assert client.counters.connects == 0


@pytest.mark.broker
def test_a_broker_that_wants_a_certificate_we_do_not_have_says_so(
    make_client: MakeClient, start_broker: Callable[..., Broker], authority: Authority
) -> None:
    broker = start_broker(authority=authority, client_certificates=True)
    client = make_client(broker.url, settings={"ca": str(authority.cert)})
    drive(client, lambda: client.counters.failures == 1)

    assert "client certificate" in client.reason


@pytest.mark.broker
def test_tls_to_a_port_that_does_not_speak_it_is_a_clear_line(
    make_client: MakeClient, broker: Broker, authority: Authority
) -> None:
    url = broker.url.replace("mqtt://", "mqtts://")
    client = make_client(url, settings={"ca": str(authority.cert), "connect_timeout_s": 1.0})
    drive(client, lambda: client.counters.failures == 1)

    assert client.reason.startswith(("EOF", "[SSL", "wrong version", "timed out", "Connection reset", "_ssl"))
