"""The files to deploy do what docs/deploy.md says of them, and agree with the defaults of the code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from broker import WAIT_S, Broker, Probe, find_mosquitto, until
from certificates import Authority
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_runtime.config import NodeSettings
from edge_runtime.daemon import GOODBYE_S
from edge_runtime.delivery.overload import QueueSettings
from edge_runtime.model.gate import GateSettings
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.supervisor import LOOKS

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNIT, CONF, ACL = (DEPLOY / name for name in ("edge-runtime.service", "mosquitto.conf", "mosquitto.acl"))
MQTT, NODE = MqttSettings(url="mqtt://localhost"), NodeSettings(id="n")
EXPOSURE = 20
"""Ten times what `systemd-analyze security` may find, from 0 (locked away) to 100."""
ANONYMOUS = ("listener 1883 127.0.0.1", "allow_anonymous true")
USERS = {"press-hall-1": "n", "sensors": "s", "dashboard": "d"}


def directives(path: Path) -> dict[str, str]:
    """By name, the last of equal ones; comments are none."""
    lines = [line.strip() for line in path.read_text().splitlines() if line and line[0] not in "#["]
    return dict(re.split(r"[=\s]", line, maxsplit=1) for line in lines)


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(d|min|)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"d": 86_400, "min": 60, "": 1}[unit]


class Deployed(Broker):
    """The file as it lies in deploy/, on a port and in a folder of its own; with an authority, the part with TLS."""

    def _config(self) -> list[str]:
        lines = CONF.read_text().splitlines()
        if self.authority is None:
            changed = {ANONYMOUS[0]: f"listener {self.port} 127.0.0.1"}
        else:
            self._access()
            own = self.authority.issue("broker", hosts=self.hosts)
            shutil.copy(ACL, self.folder / "acl")
            (self.folder / "acl").chmod(0o600)
            lines = [line.removeprefix("#") if line[1:2] != " " else line for line in lines if line not in ANONYMOUS]
            changed = {
                "listener 8883": f"listener {self.port} 127.0.0.1",
                "certfile /etc/mosquitto/certs/broker.pem": f"certfile {own.cert}",
                "keyfile /etc/mosquitto/certs/broker.key": f"keyfile {own.key}",
                "password_file /etc/mosquitto/passwords": f"password_file {self.folder / 'passwords'}",
                "acl_file /etc/mosquitto/acl": f"acl_file {self.folder / 'acl'}",
            }
        assert set(changed) <= set(lines)
        user = ["user root"] if os.geteuid() == 0 else []
        place = [f"persistence_location {self.folder}/", "log_type all"]
        return [*user, *place, *(changed.get(line, line) for line in lines)]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Callable[..., Deployed]]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is neither on PATH nor in /usr/sbin: install it to run the broker tests")
    made: list[Deployed] = []

    def start(**options: Any) -> Deployed:
        made.append(Deployed(tmp_path / "broker", **options))
        made[-1].start()
        return made[-1]

    yield start
    for broker in made:
        broker.close()


class Silent:
    """A subscriber with a session that acknowledges nothing."""

    def __init__(self, broker: Broker, *, protocol: int) -> None:
        self.messages = 0
        self.connack: Properties | None = None
        self.subscribed = False
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "silent", protocol=protocol, manual_ack=True)
        if protocol == paho.MQTTv311:
            self.client = paho.Client(
                CallbackAPIVersion.VERSION2, "silent", clean_session=False, protocol=protocol, manual_ack=True
            )
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        asked: dict[str, Any] = {}
        if protocol == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval, properties.ReceiveMaximum = 3600, MQTT.receive_maximum
            asked = {"clean_start": False, "properties": properties}
        self.client.connect("127.0.0.1", broker.port, **asked)
        self.client.loop_start()
        until(lambda: self.subscribed, what="subscribed")

    def _on_connect(self, client: paho.Client, _data: Any, _flags: Any, _code: Any, properties: Any) -> None:
        self.connack = properties
        client.subscribe("in", 1)

    def _on_subscribe(self, *_: Any) -> None:
        self.subscribed = True

    def _on_message(self, *_: Any) -> None:
        self.messages += 1

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def publish(broker: Broker, count: int) -> None:
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.max_inflight_messages_set(500)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    for sent in [client.publish("in", b"%d" % n, 1) for n in range(count)]:
        sent.wait_for_publish(WAIT_S)
    client.disconnect()
    client.loop_stop()


@pytest.mark.broker
def test_the_broker_starts_with_the_file_and_finds_nothing_wrong_in_it(deploy: Callable[..., Deployed]) -> None:
    broker = deploy()

    assert "mosquitto version" in broker.log
    said = [line for line in broker.log.splitlines() if "should not be run as root" not in line]
    assert not re.search("error|warn|deprecated|unknown", "\n".join(said), re.IGNORECASE), said


@pytest.mark.broker
def test_it_can_be_included_by_debians_own_file(tmp_path: Path, deploy: Callable[..., Deployed]) -> None:
    broker = deploy()
    broker.stop()
    included = tmp_path / "conf.d"
    included.mkdir()
    written = (broker.folder / "mosquitto.conf").read_text().splitlines()
    (included / "edge.conf").write_text("\n".join(x for x in written if not x.startswith("persistence_location")))
    main = f"persistence true\npersistence_location {tmp_path}/\nlog_dest stderr\ninclude_dir {included}\n"
    broker._config = main.splitlines  # type: ignore[method-assign]
    broker.start()

    assert "Error" not in broker.log


@pytest.mark.broker
def test_what_waits_for_a_daemon_that_is_away_survives_the_brokers_restart(deploy: Callable[..., Deployed]) -> None:
    broker, count = deploy(), 2500
    Silent(broker, protocol=paho.MQTTv311).close()
    publish(broker, count)
    broker.stop()
    broker.start()
    back = Silent(broker, protocol=paho.MQTTv311)
    expected = int(directives(CONF)["max_inflight_messages"])
    assert count > expected > 1000
    until(lambda: back.messages == expected, what="as many as may be in flight")
    back.close()
    assert "being dropped" not in broker.log


@pytest.mark.broker
def test_the_broker_lets_as_much_be_in_flight_as_the_daemon_asks_for(deploy: Callable[..., Deployed]) -> None:
    broker = deploy()
    silent = Silent(broker, protocol=paho.MQTTv5)
    publish(broker, MQTT.receive_maximum + 300)
    until(lambda: silent.messages == MQTT.receive_maximum, what="receive_maximum messages without an acknowledgement")
    silent.close()

    assert silent.connack is not None
    assert getattr(silent.connack, "ReceiveMaximum", 65_535) >= MQTT.max_inflight


@pytest.mark.broker
def test_the_part_with_tls_lets_everyone_do_what_the_access_list_says(
    deploy: Callable[..., Deployed], tmp_path: Path
) -> None:
    authority = Authority(tmp_path / "ca")
    broker = deploy(users=USERS, authority=authority)

    def probe(name: str, *filters: str) -> Probe:
        return broker.probe(*filters, username=name, password=USERS[name])

    node, sensors = probe("press-hall-1", "plant/#"), probe("sensors")
    dashboard = probe("dashboard", "edge/v1/#")
    sensors.publish("edge/v1/press-hall-1/status", b"forged")
    sensors.publish("plant/m1/vib", b"1")
    node.publish("edge/v1/other/status", b"forged")
    assert node.wait_for(1)[0].payload == b"1"
    node.publish("edge/v1/press-hall-1/status", b"online")

    assert [message.payload for message in dashboard.wait_for(1)] == [b"online"]
    assert not re.search("error", broker.log, re.IGNORECASE), broker.log


def test_the_broker_and_the_defaults_of_the_daemon_agree() -> None:
    found = directives(CONF)

    assert int(found["max_inflight_messages"]) >= max(MQTT.receive_maximum, MQTT.max_inflight)
    assert MQTT.receive_maximum > QueueSettings().max
    assert int(found["max_queued_messages"]) >= MQTT.max_outgoing
    assert int(found["max_queued_bytes"]) > MQTT.maximum_packet_bytes
    assert seconds(found["persistent_client_expiration"]) > MQTT.session_expiry_s
    assert 0 < int(found["autosave_interval"]) <= 60
    assert (found["persistence"], found["set_tcp_nodelay"]) == ("true", "true")
    assert "autosave_on_changes" not in found


def test_the_unit_and_the_defaults_of_the_daemon_agree() -> None:
    found = directives(UNIT)

    assert found["Type"] == "notify"
    assert seconds(found["WatchdogSec"]) > NODE.watchdog_s * (1 + 1 / LOOKS)
    assert seconds(found["TimeoutStopSec"]) > NODE.drain_s + 4 * GOODBYE_S
    assert seconds(found["TimeoutStartSec"]) > 4 * GateSettings().timeout_s
    assert f"/var/lib/{found['StateDirectory']}" == NODE.state_dir
    assert found["ExecStart"].endswith("/edge-runtime run /etc/edge-runtime/device.toml")
    assert f"({GateSettings().memory_mb:g})" in UNIT.read_text()
    assert (found["Restart"], found["RestartPreventExitStatus"], found["StartLimitIntervalSec"]) == ("always", "2", "0")


def test_systemd_finds_nothing_wrong_in_the_unit(tmp_path: Path) -> None:
    path = analyze()
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/edge-runtime/bin/edge-runtime", sys.executable))
    done = subprocess.run(
        [path, "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if UNIT.name in line]) == (
        0,
        [],
    )


def test_systemd_finds_the_unit_little_exposed() -> None:
    command = [analyze(), "security", "--offline=true", f"--threshold={EXPOSURE}", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline (before 250)")

    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def analyze() -> str:
    return shutil.which("systemd-analyze") or pytest.skip("systemd-analyze is not installed")


@pytest.mark.parametrize("path", [UNIT, CONF], ids=lambda path: path.name)
def test_the_page_explains_every_line_it_quotes(path: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    quoted = [text for text in re.findall(r"`([\w]+[= ][^`]+)`", page) if re.split("[= ]", text)[0] in directives(path)]

    assert len(quoted) >= 6
    lines = path.read_text().splitlines()
    absent = {"PrivateDevices=no"}
    assert [text for text in quoted if text not in lines and text not in absent] == []
