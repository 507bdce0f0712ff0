from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from broker import Broker, free_port
from certificates import Authority
from driving import confirmed, cut, drive, receive

from edge_runtime.mqtt.client import MqttClient
from edge_runtime.records import Outgoing

MakeClient = Callable[..., MqttClient]
StartBroker = Callable[..., Broker]


@pytest.fixture(params=["ws 5", "ws 3.1.1", "wss 5"])
def reached(
    request: pytest.FixtureRequest, start_broker: StartBroker, tmp_path: Path
) -> tuple[Broker, str, dict[str, str]]:
    """A broker that listens for websockets beside MQTT, their url, and the settings they need."""
    scheme, protocol = request.param.split()
    port = free_port()
    lines: tuple[str, ...] = (f"listener {port} 127.0.0.1", "protocol websockets")
    settings = {"protocol": protocol}
    if scheme == "wss":
        authority = Authority(tmp_path / "authority")
        own = authority.issue("websockets", hosts=("localhost",))
        lines += (f"certfile {own.cert}", f"keyfile {own.key}")
        settings["ca"] = str(authority.cert)
    return start_broker(lines=lines), f"{scheme}://localhost:{port}/mqtt", settings


@pytest.mark.broker
def test_messages_go_both_ways(make_client: MakeClient, reached: tuple[Broker, str, dict[str, str]]) -> None:
    """Small ones to us: over websockets, mosquitto 2.0.11 itself holds large ones back until it hears from us."""
    broker, url, settings = reached
    client = make_client(url, settings=settings, subscriptions=[("in/#", 1)])
    drive(client, lambda: client.subscribed)
    probe = broker.probe("out/#")
    sizes = [10, 3_000, 0, 126, 125, 1] * 5

    for size in sizes:
        probe.publish("in/a", bytes(size), qos=0)
    messages = receive(client, len(sizes))
    tokens = [client.publish(Outgoing("out/a", bytes([n]) * 300_000, qos=n % 2)) for n in range(10)]

    assert client.kind == "callbacks"
    assert [len(message.payload) for message in messages] == sizes
    assert sorted(confirmed(client, 10)) == [(token, "") for token in tokens]
    assert [message.payload for message in probe.wait_for(10)] == [bytes([n]) * 300_000 for n in range(10)]


@pytest.mark.broker
def test_a_connection_that_breaks_is_taken_up_again(
    make_client: MakeClient, reached: tuple[Broker, str, dict[str, str]]
) -> None:
    broker, url, settings = reached
    client = make_client(url, settings=settings, subscriptions=[("in/#", 1)])
    drive(client, lambda: client.subscribed)
    broker.probe().publish("in/a", b"x")
    [first] = receive(client, 1)

    cut(client)
    [again] = receive(client, 1)

    assert (again.payload, again.dup) == (b"x", True)
    assert again.epoch > first.epoch
    assert client.counters.sessions_lost == 0


@pytest.mark.broker
def test_small_packets_are_sent_at_once(make_client: MakeClient, reached: tuple[Broker, str, dict[str, str]]) -> None:
    _, url, settings = reached
    client = make_client(url, settings=settings)
    drive(client, lambda: client.connected)
    with socket.socket(fileno=socket.dup(client.fileno())) as line:
        assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_server_that_speaks_no_websockets_is_a_clear_line(make_client: MakeClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = make_client(f"ws://127.0.0.1:{server.getsockname()[1]}")
        line, _ = server.accept()
        with line:
            line.sendall(b"HTTP/1.1 404 Not Found\r\n\r\n")
            drive(client, lambda: client.counters.failures == 1)

    assert client.reason == "WebSocket handshake error"
    assert client.counters.connects == 0


@pytest.mark.broker
def test_packets_a_socket_takes_in_part_are_sent_to_their_end(
    make_client: MakeClient, reached: tuple[Broker, str, dict[str, str]]
) -> None:
    """paho's websocket alone forgets that a packet was written in part, and the next one then counts as sent."""
    broker, url, settings = reached
    probe = broker.probe("out/#")
    client = make_client(url, settings=settings)
    drive(client, lambda: client.connected)
    with socket.socket(fileno=socket.dup(client.fileno())) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    tokens = [client.publish(Outgoing("out/a", b"%07d" % n * 15_000)) for n in range(6)]

    assert confirmed(client, 6) == [(token, "") for token in tokens]
    assert [message.payload[:7] for message in probe.wait_for(6)] == [b"%07d" % n for n in range(6)]
    assert client.counters.disconnects == 0
