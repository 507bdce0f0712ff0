from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hostile
import pytest
from broker import Broker, hold_port
from bundles import means_manifest, write_means_bundle
from certificates import Authority
from click.testing import CliRunner
from scripted import Scripted

from edge_runtime.cli import main
from edge_runtime.delivery.store import Store, StoreSettings
from edge_runtime.findings import Finding
from edge_runtime.mqtt.client import MqttClient
from edge_runtime.mqtt.examine import examine
from edge_runtime.mqtt.presence import Presence
from edge_runtime.mqtt.settings import MqttSettings
from edge_runtime.stream.arrays import json_reader

CONFIG = """
[node]
id = "n1"
state_dir = "state"

[mqtt]
url = "{url}"
connect_timeout_s = 1.0

[models.m]
bundle = "m.edge"
provider = "{provider}"

[pipelines.p]
source = {{ topic = "in/+x/v", channels = {channels} }}
model = "m"
"""
MACHINE = ["architecture", "python", "libc", "processor", "clock", "monotonic", "onnxruntime"]
LIMITS = ["maximum_qos", "retain", "wildcards", "maximum_packet", "receive_maximum", "keep_alive", "session_expiry"]


def config(
    folder: Path, url: str = "mqtt://127.0.0.1:1", *, provider: str = "CPUExecutionProvider", channels: int = 2
) -> Path:
    if not (folder / "m.edge").exists():
        write_means_bundle(folder / "m.edge", means_manifest())
    path = folder / "device.toml"
    path.write_text(CONFIG.format(url=url, provider=provider, channels=channels))
    return path


def doctor(*arguments: object) -> tuple[int, dict[str, Finding], list[str]]:
    """Exit code, findings by name, names in order."""
    done = CliRunner().invoke(main, ["doctor", "--json", *map(str, arguments)])
    assert done.stderr == ""
    report = json.loads(done.stdout)
    findings = [Finding(**found) for found in report["findings"]]
    assert report["ok"] == (done.exit_code == 0) == all(found.status != "fail" for found in findings)
    assert all(bool(found.advice) == (found.status != "ok") for found in findings)
    return done.exit_code, {found.name: found for found in findings}, [found.name for found in findings]


def test_without_a_configuration_the_machine_alone_is_examined() -> None:
    code, found, names = doctor()

    assert [name for name in names if name != "board"] == MACHINE
    assert code == 0
    assert "pump-vibration@1.0.0 runs" in found["onnxruntime"].found


@pytest.mark.broker
def test_a_configuration_that_works_has_a_finding_for_each_thing_it_needs(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    code, found, names = doctor(config(tmp_path, broker.url))

    rest = ["config", "providers", "model.m", "pipeline.p", "state_dir", "disk", "mount", "commit"]
    rest += ["broker", "subscriptions"]
    assert [name for name in names if name != "board"] == [*MACHINE, *rest, *LIMITS]
    assert code == 0
    assert {found[name].status for name in [*rest, *LIMITS] if name not in ("disk", "mount")} == {"ok"}
    assert found["model.m"].found.startswith("means@1.0.0 is proven here: p95 of one window ")
    form = f"json (lists by {json_reader()})"
    assert found["pipeline.p"].found == f"{form} with 2 channels, windows of 4, hop 4: fits means@1.0.0"
    assert broker.log.count("as edge-runtime-n1-doctor ") == 3
    assert "as edge-runtime-n1 " not in broker.log


def commits(folder: Path, *lines: str) -> Finding:
    """What is found of commits with these lines at the end of the configuration, which are the pipeline's first."""
    (folder / "state").mkdir(exist_ok=True)
    path = config(folder)
    path.write_text("\n".join([path.read_text(), *lines]))
    return doctor(path)[1]["commit"]


def test_a_commit_is_timed_on_the_disk_that_it_will_go_to_and_leaves_nothing_there(tmp_path: Path) -> None:
    found = commits(tmp_path, 'delivery = "full"')

    assert (found.status, list((tmp_path / "state").iterdir())) == ("ok", [])
    told = re.fullmatch(r"full: (\S+) ms a commit here, the longest of (\d+): (\S+) ms", found.found)
    assert told is not None
    assert 0 < float(told[1]) <= float(told[3])
    assert 1 <= int(told[2]) <= 50


def test_a_deadline_that_no_commit_can_keep_is_a_warning(tmp_path: Path) -> None:
    found = commits(tmp_path, "deadline_ms = 50", "[store]", 'profile = "sd-card"')

    assert found.status == "warn"
    assert found.found.endswith("after store.commit_wait_ms = 100: too late for pipelines.p.deadline_ms = 50")


def test_a_store_that_was_moved_aside_is_named_and_a_store_in_use_is_not_touched(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    running = Store(state / "store.db", StoreSettings())
    running.load()
    (state / "store.db.corrupt-20261123T101112Z").touch()
    _, found, _ = doctor(config(tmp_path))
    running.close()

    assert (found["store"].status, found["commit"].status) == ("warn", "ok")
    assert found["store"].found == f"unsound, and moved aside in {state}: store.db.corrupt-20261123T101112Z"


def test_nothing_is_committed_for_pipelines_in_memory(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    path = config(tmp_path)
    path.write_text(path.read_text() + 'delivery = "memory"')

    assert "commit" not in doctor(path)[1]


def test_the_text_names_each_finding_and_what_to_do_about_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", str(tmp_path / "none.toml")])
    lines = done.stdout.splitlines()

    assert done.exit_code == 1
    assert lines[0].startswith("ok    architecture      Linux ")
    assert f"fail  config            {tmp_path}/none.toml: cannot be read: No such file or directory" in lines
    assert lines[-2].startswith("                        -> correct the file")
    assert lines[-1].startswith("1 failed, ")
    assert done.stderr == ""


@pytest.mark.parametrize("text", ["[node", "[node]\nid = 5\n", "\xff", "[node]\nid = 'a'\n[mqtt]\nurl = 'http://x'\n"])
def test_a_configuration_that_does_not_load_is_a_finding(tmp_path: Path, text: str) -> None:
    (tmp_path / "device.toml").write_text(text, encoding="latin-1")
    code, found, names = doctor(tmp_path / "device.toml")

    assert (code, names[-1], found["config"].status) == (1, "config", "fail")


def test_a_source_that_contradicts_itself_is_named_and_nothing_is_said_of_the_model(tmp_path: Path) -> None:
    path = config(tmp_path)
    path.write_text(path.read_text().replace("channels = 2", "channels = 2, clock_synced = true"))
    _, found, names = doctor(path)

    assert names[-1] == "config"
    assert "pipelines.p.source: clock_synced speaks of" in found["config"].found
    assert found["config"].advice == "correct the file; docs/configuration.md has every setting"


def test_all_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    """A bundle of garbage, a file in place of the state folder, a port nobody listens on."""
    (tmp_path / "m.edge").write_bytes(b"garbage")
    (tmp_path / "state").touch()
    with hold_port() as holder:
        started = time.monotonic()
        code, found, _ = doctor(config(tmp_path, f"mqtt://127.0.0.1:{holder.getsockname()[1]}"))

    assert time.monotonic() - started < 10
    assert code == 1
    assert {name for name, finding in found.items() if finding.status == "fail"} == {"model.m", "state_dir", "broker"}
    assert "not a whole bundle" in found["model.m"].found
    assert "Connection refused" in found["broker"].found
    assert "start the broker" in found["broker"].advice
    assert "pipeline.p" not in found


def test_an_absent_bundle_an_absent_provider_and_a_pipeline_that_does_not_fit(tmp_path: Path) -> None:
    _, found, _ = doctor(config(tmp_path, provider="CUDAExecutionProvider", channels=3))
    (tmp_path / "m.edge").unlink()
    (tmp_path / "m.edge").mkdir()
    _, absent, _ = doctor(tmp_path / "device.toml")

    assert found["providers"].status == "fail"
    assert "CUDAExecutionProvider not among" in found["providers"].found
    assert found["model.m"].found == "means@1.0.0, verified; not run"
    assert found["pipeline.p"].found == "source has 3 channels, means@1.0.0 takes 2"
    assert "Is a directory" in absent["model.m"].found


@pytest.mark.parametrize(
    ("model", "bounds", "words"),
    [
        (hostile.memory_bomb(at_load=False), "memory_mb = 600", "needs more memory than gate.memory_mb = 600 allows"),
        (hostile.endless_loop(), "cpu_s = 1", "used more than gate.cpu_s = 1 s of processor time"),
    ],
    ids=["memory bomb", "endless loop"],
)
def test_a_bundle_that_the_daemon_refuses_is_a_failure_within_the_same_bounds(
    tmp_path: Path, model: bytes, bounds: str, words: str
) -> None:
    hostile.bundle_of(tmp_path / "m.edge", model)
    path = config(tmp_path)
    path.write_text(f"{path.read_text()}\n[gate]\n{bounds}\n")
    _, found, _ = doctor(path)

    assert found["model.m"].status == "fail"
    assert found["model.m"].found.startswith(f"means@1.0.0: {words}")
    assert f"edge-runtime bundle verify --config {path} {tmp_path}/m.edge" in found["model.m"].advice
    assert found["pipeline.p"].status == "ok"


def broker_findings(url: str, **settings: Any) -> dict[str, Finding]:
    known = MqttSettings(url=url, **{"connect_timeout_s": 1.0, **settings})
    found = examine(known, client_id="d", subscriptions=[("in/+/v", 1), ("plain", 0)], payload_bytes=1_048_576)
    return {finding.name: finding for finding in found}


@pytest.mark.broker
@pytest.mark.parametrize(
    ("line", "name", "status", "words"),
    [
        ("max_qos 0", "maximum_qos", "fail", "will refuse the daemon"),
        ("retain_available false", "retain", "fail", "will refuse the daemon"),
        ("max_packet_size 2000", "maximum_packet", "fail", "2,000 bytes at the broker"),
        ("max_packet_size 500000", "maximum_packet", "warn", "max_payload_bytes = 1,048,576"),
        ("max_inflight_messages 2", "receive_maximum", "warn", "2 results at once"),
        ("max_keepalive 20", "keep_alive", "ok", "20 s"),
    ],
)
def test_each_limit_of_a_real_broker_is_held_against_what_is_needed(
    start_broker: Callable[..., Broker], line: str, name: str, status: str, words: str
) -> None:
    found = broker_findings(start_broker(lines=(line,)).url)

    assert (found[name].status, words in found[name].found) == (status, True)
    others = {other: finding.status for other, finding in found.items() if other not in (name, "subscriptions")}
    assert set(others.values()) == {"ok"}
    assert found["subscriptions"].status == ("warn" if line == "max_qos 0" else "ok")


@pytest.mark.broker
@pytest.mark.parametrize("line", ["max_qos 0", "retain_available false"])
def test_a_broker_that_fails_for_a_limit_does_refuse_the_daemons_will(
    start_broker: Callable[..., Broker], make_client: Callable[..., MqttClient], line: str
) -> None:
    client = make_client(start_broker(lines=(line,)).url, presence=Presence("edge/v1/n1/status", "boot"))
    deadline = time.monotonic() + 10
    while not client.counters.refused and time.monotonic() < deadline:
        client.poll(0.01)

    assert client.reason in ("QoS not supported", "Retain not supported")


@pytest.mark.broker
def test_credentials_and_refused_subscriptions_are_explained(
    start_broker: Callable[..., Broker], tmp_path: Path
) -> None:
    broker = start_broker(users={"node": "s3cret"}, acl=("user node", "topic read plain"))
    password = tmp_path / "pass"
    password.write_text("s3cret\n")
    password.chmod(0o600)
    login = {"username": "node", "password_file": str(password)}
    let_in = broker_findings(broker.url, **login)
    password.chmod(0o644)
    open_file = broker_findings(broker.url, **login)
    password.write_text("wrong\n")
    password.chmod(0o600)
    wrong = broker_findings(broker.url, **login)
    absent = broker_findings(broker.url, username="node", password_file=str(tmp_path / "none"))

    assert let_in["password_file"].status == "ok"
    assert let_in["broker"].status == "ok"
    assert (open_file["password_file"].status, open_file["broker"].status) == ("fail", "fail")
    assert f"chmod 600 {password}" in open_file["password_file"].advice
    assert "Not authorized" in wrong["broker"].found
    assert "mqtt.password_file" in wrong["broker"].advice
    assert "No such file" in absent["password_file"].found
    assert "s3cret" not in str((let_in, open_file, wrong, absent))


@pytest.mark.broker
def test_what_a_broker_tells_about_sessions_and_quotas_of_mqtt_3_1_1_is_nothing(broker: Broker) -> None:
    found = broker_findings(broker.url, protocol="3.1.1")

    assert list(found) == ["broker", "subscriptions"]
    assert "tells no limits" in found["broker"].found


@pytest.mark.broker
def test_failures_of_tls_say_what_to_do(start_broker: Callable[..., Broker], tmp_path: Path) -> None:
    authority, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    own = authority.issue("node")
    broker = start_broker(authority=authority, hosts=("localhost",), client_certificates=True)
    plain = start_broker()
    trusted = {"ca": str(authority.cert), "cert": str(own.cert), "key": str(own.key)}
    own.key.chmod(0o600)

    def found(name: str, url: str, **settings: str) -> Finding:
        return broker_findings(url, **settings)[name]

    assert found("broker", broker.url, **trusted).status == "ok"
    assert f"client certificate {own.cert}" in found("tls", broker.url, **trusted).found
    own.key.chmod(0o644)
    assert found("tls", broker.url, **trusted).advice == f"chmod 600 {own.key}"
    assert "authority" in found("broker", broker.url, ca=str(other.cert)).advice
    assert "host name" in found("broker", f"mqtts://127.0.0.1:{broker.port}", **trusted).advice
    assert "mqtt.cert and mqtt.key" in found("broker", broker.url, ca=str(authority.cert)).advice
    assert "TLS port" in found("broker", plain.url.replace("mqtt:", "mqtts:"), ca=str(authority.cert)).advice
    assert "expects TLS" in found("broker", f"mqtt://localhost:{broker.port}").advice
    assert "mqtt.ca" in found("tls", broker.url, ca=str(tmp_path / "none.pem")).found
    assert "mqtt.cert" in found("tls", broker.url, **{**trusted, "key": str(authority.cert)}).found


class Unpolled:
    """Stands where Scripted polls its client, which here polls itself."""

    connected = True

    def poll(self, timeout_s: float) -> list[Any]:
        time.sleep(timeout_s)
        return []


@contextmanager
def answering(scripted: Scripted, *connacks: bytes) -> Iterator[None]:
    """Accept a connection per CONNACK, given as its encoded properties, grant what is subscribed to, see it end."""

    def serve() -> None:
        for properties in connacks:
            assert scripted.accept(Unpolled())[0] == 0x10
            scripted.send_packet(0x20, bytes([0, 0]) + scripted.properties(properties))
            first, body = scripted.receive(Unpolled())
            if first == 0x82:
                scripted.send_packet(0x90, body[:2] + scripted.properties() + bytes([1, 0]))
                first, _ = scripted.receive(Unpolled())
            assert first == 0xE0
            scripted.hang_up()

    thread = threading.Thread(target=serve)
    thread.start()
    yield
    thread.join(10)
    assert not thread.is_alive()


def prop(number: int, value: int, size: int) -> bytes:
    return bytes([number]) + value.to_bytes(size, "big")


def test_odd_limits_of_a_broker_are_judged(scripted: Scripted) -> None:
    """Half an hour of session, no wildcards, no shared subscriptions, a keep-alive of a day."""
    odd = prop(0x28, 0, 1) + prop(0x2A, 0, 1) + prop(0x13, 65_000, 2) + prop(0x22, 7, 2) + prop(0x24, 1, 1)
    with answering(scripted, odd, prop(0x11, 1800, 4), b""):
        found = broker_findings(scripted.url)

    assert {name: finding.status for name, finding in found.items() if finding.status != "ok"} == {
        "wildcards": "fail",
        "keep_alive": "warn",
        "session_expiry": "warn",
    }
    assert "in/+/v" in found["wildcards"].found
    assert "65000 s" in found["keep_alive"].found
    assert "1,800 s of session_expiry_s = 604,800" in found["session_expiry"].found
    assert found["broker"].found.endswith("no shared subscriptions, topic alias maximum 7")
    assert found["maximum_qos"].found == "1"


def test_the_session_asked_for_is_given_back(scripted: Scripted) -> None:
    """The expiry in CONNECT: none for the questions, the configuration's to learn of the grant, none to end it."""
    asked = []
    receive = scripted.accept

    def accept(client: Any) -> tuple[int, bytes]:
        first, body = receive(client)
        at = body.index(b"\x11", 10)
        asked.append(int.from_bytes(body[at + 1 : at + 5], "big"))
        return first, body

    scripted.accept = accept  # type: ignore[method-assign]
    with answering(scripted, b"", b"", b""):
        found = broker_findings(scripted.url, session_expiry_s=3600)

    assert asked == [0, 3600, 0]
    assert found["session_expiry"].status == "ok"


def test_no_session_at_all_is_a_warning_and_is_not_asked_for(scripted: Scripted) -> None:
    with answering(scripted, b""):
        found = broker_findings(scripted.url, session_expiry_s=0)

    assert found["session_expiry"].status == "warn"


@pytest.mark.parametrize("raw", [b"HTTP/1.1 400 Bad\r\n\r\n", b"\x20\x00", b"\x20\x06\x00\x00\x03\xfe\x00\x01", b""])
def test_a_port_that_answers_nonsense_is_a_finding(scripted: Scripted, raw: bytes) -> None:
    def serve() -> None:
        scripted.accept(Unpolled())
        scripted.send(raw)
        scripted.hang_up()

    thread = threading.Thread(target=serve)
    thread.start()
    found = broker_findings(scripted.url)
    thread.join(10)

    assert list(found) == ["broker"]
    assert found["broker"].status == "fail"
    assert found["broker"].advice != "see the broker's log"


def test_a_port_that_never_answers_costs_the_timeout_once(scripted: Scripted) -> None:
    started = time.monotonic()
    found = broker_findings(scripted.url, connect_timeout_s=0.3)

    assert "no answer to CONNECT within 0.3 s" in found["broker"].found
    assert time.monotonic() - started < 3
