"""Whether a broker would serve the configuration: its answer, its limits against what is needed, the files it takes."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_runtime.errors import ConfigError
from edge_runtime.findings import Finding, fail, ok, warn
from edge_runtime.mqtt.probe import Answer, ask, granted_expiry_s
from edge_runtime.mqtt.settings import MqttSettings, parse_url, read_password, tls_context
from edge_runtime.mqtt.topics import Subscription
from edge_runtime.mqtt.wire import Limits

LEAST_PACKET_BYTES = 4096
LEAST_RECEIVE_MAXIMUM = 10
CHECK_PROTOCOL = 'set mqtt.protocol = "3.1.1" for a broker that knows no MQTT 5; look whether the port expects TLS'
CHECK_TLS = "the port does not speak TLS: use the broker's TLS port, mostly 8883, or mqtt:// without TLS"
CHECK_NAME = "write in mqtt.url a host name that stands in the broker's certificate"
CHECK_NETWORK = "check the network of this device"
ADVICE = {
    "connection refused": "nothing listens there: start the broker, correct mqtt.url, give mosquitto a listener line",
    "name or service not known": "the host in mqtt.url is not known here: correct it, or write an IP address",
    "name resolution": "the name server does not answer: check the network, or write an IP address in mqtt.url",
    "not yet valid": "set the clock of this device, then look at the certificate's dates",
    "has expired": "renew the broker's certificate, if the clock of this device is right",
    "hostname mismatch": CHECK_NAME,
    "ip address mismatch": CHECK_NAME,
    "certificate verify failed": "set mqtt.ca to the certificate of the authority that signed the broker's",
    "certificate required": "set mqtt.cert and mqtt.key to a certificate the broker trusts",
    "client certificate": f"set mqtt.cert and mqtt.key to a certificate the broker trusts, or {CHECK_PROTOCOL}",
    "wrong version number": CHECK_TLS,
    "eof occurred": CHECK_TLS,
    "not authorized": "check mqtt.username and mqtt.password_file, and that the broker admits this client id",
    "bad user name": "check mqtt.username and mqtt.password_file",
    "identifier": "let the broker admit client ids that begin with this node's",
    "protocol version": CHECK_PROTOCOL,
    "does it expect mqtt": CHECK_PROTOCOL,
    "connection reset": f"see the broker's log; {CHECK_TLS}",
    "not mqtt": "something else answers on that port: correct mqtt.url",
    "timed out": "a firewall may drop what we send, or the host is off: try ping, and nc -vz HOST PORT",
    "no answer": "the broker is overloaded, or what listens there is no broker: see its log",
    "unreachable": CHECK_NETWORK,
    "no route": CHECK_NETWORK,
}
"""What to do about a problem, by words that are in it; the first that fit."""


def examine(
    settings: MqttSettings, *, client_id: str, subscriptions: Sequence[Subscription], payload_bytes: int
) -> Iterator[Finding]:
    """client_id: one that nobody else uses. payload_bytes: the largest message the configuration's sources allow."""
    files = [*_password(settings), *_tls(settings)]
    yield from files
    if any(finding.status == "fail" for finding in files):
        yield fail("broker", f"{settings.url}: not tried without these files", "put them right, then run doctor again")
        return
    answer = ask(settings, client_id=client_id, subscriptions=subscriptions)
    limits = answer.limits
    if limits is None:
        yield fail("broker", f"{settings.url}: {answer.problem}", _advice(answer.problem))
        return
    yield _broker(settings, limits)
    yield _subscriptions(answer, subscriptions)
    if settings.protocol == "5":
        asked_s = settings.session_expiry_s
        kept_s = granted_expiry_s(settings, client_id=client_id) if asked_s else 0
        yield from _judge(limits, settings, subscriptions, payload_bytes)
        yield _session(asked_s if kept_s is None else kept_s, asked_s)


def _password(settings: MqttSettings) -> list[Finding]:
    if not settings.password_file:
        return []
    try:
        read_password(settings.password_file)
    except ConfigError as error:
        advice = f"one line, readable by the daemon's user only: chmod 600 {settings.password_file}"
        return [fail("password_file", error.problem, advice)]
    return [ok("password_file", f"{settings.password_file}, closed to other users")]


def _tls(settings: MqttSettings) -> list[Finding]:
    if not parse_url(settings.url).tls:
        return []
    try:
        tls_context(settings)
    except ConfigError as error:
        return [fail("tls", f"mqtt.{error.key}: {error.problem}", "give the path of a PEM file this user can read")]
    if settings.key and Path(settings.key).stat().st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return [warn("tls", f"{settings.key} is open to every user", f"chmod 600 {settings.key}")]
    own = f", client certificate {settings.cert}" if settings.cert else ""
    return [ok("tls", f"authority {settings.ca or 'of the system'}{own}")]


def _advice(problem: str) -> str:
    found = problem.lower()
    return next((advice for words, advice in ADVICE.items() if words in found), "see the broker's log")


def _broker(settings: MqttSettings, limits: Limits) -> Finding:
    found = f"{settings.url}: reached, MQTT {settings.protocol}"
    if settings.protocol != "5":
        return ok("broker", f"{found}, which tells no limits")
    shared = "" if limits.shared_subscriptions else "no "
    unused = f"{shared}shared subscriptions, topic alias maximum {limits.topic_alias_maximum}"
    return ok("broker", f"{found}; not used here: {unused}")


def _subscriptions(answer: Answer, subscriptions: Sequence[Subscription]) -> Finding:
    if answer.problem:
        return fail("subscriptions", answer.problem, _advice(answer.problem))
    if answer.refused:
        refused = ", ".join(f"{name}: {why}" for name, why in answer.refused.items())
        return fail("subscriptions", f"refused: {refused}", "let the broker's access list allow this user to read them")
    if answer.downgraded:
        lowered = ", ".join(f"{name}: QoS {qos}" for name, qos in answer.downgraded.items())
        advice = "allow QoS 1 at the broker; at QoS 0 messages are lost while this device is away"
        return warn("subscriptions", f"granted at less than was asked for: {lowered}", advice)
    return ok("subscriptions", f"granted: {', '.join(name for name, _ in subscriptions)}")


def _judge(
    limits: Limits, settings: MqttSettings, subscriptions: Sequence[Subscription], payload_bytes: int
) -> Iterator[Finding]:
    if limits.maximum_qos < 1:
        advice = "allow QoS 1 at the broker (mosquitto: max_qos): the node's status and last will need it"
        yield fail("maximum_qos", "0: the broker will refuse the daemon", advice)
    else:
        yield ok("maximum_qos", str(limits.maximum_qos))
    if not limits.retain:
        advice = "allow retained messages at the broker (mosquitto: retain_available): status and alarms are retained"
        yield fail("retain", "not available: the broker will refuse the daemon", advice)
    else:
        yield ok("retain", "available")
    wild = [name for name, _ in subscriptions if "+" in name or "#" in name]
    if wild and not limits.wildcards:
        advice = "write one pipeline per topic, or use a broker with wildcard subscriptions"
        yield fail("wildcards", f"not available, but asked for: {', '.join(wild)}", advice)
    else:
        yield ok("wildcards", "available" if limits.wildcards else "not available, not needed")
    yield _packet(limits.maximum_packet_bytes, settings.maximum_packet_bytes, payload_bytes)
    yield _window(limits.receive_maximum, settings.max_inflight)
    yield _keep_alive(limits.keepalive_s, settings.keepalive_s)


def _packet(broker_bytes: int, own_bytes: int, payload_bytes: int) -> Finding:
    found = f"{broker_bytes:,} bytes at the broker, {own_bytes:,} in mqtt.maximum_packet_bytes"
    if min(broker_bytes, own_bytes) < LEAST_PACKET_BYTES:
        advice = f"raise both to {LEAST_PACKET_BYTES:,} at least (mosquitto: max_packet_size)"
        return fail("maximum_packet", f"{found}: results and status may not fit", advice)
    if min(broker_bytes, own_bytes) < payload_bytes:
        advice = "raise the smaller one (mosquitto: max_packet_size), or lower max_payload_bytes to what sensors send"
        return warn("maximum_packet", f"{found}: no payload of max_payload_bytes = {payload_bytes:,} comes", advice)
    return ok("maximum_packet", found)


def _window(broker: int, own: int) -> Finding:
    used = min(broker, own)
    found = f"{broker:,} at the broker, {own} in mqtt.max_inflight: {used} results at once may wait for an answer"
    if used < LEAST_RECEIVE_MAXIMUM:
        advice = (
            f"raise both to {LEAST_RECEIVE_MAXIMUM} at least (mosquitto: max_inflight_messages), or results queue up"
        )
        return warn("receive_maximum", found, advice)
    return ok("receive_maximum", found)


def _keep_alive(broker_s: int, own_s: int) -> Finding:
    if broker_s > own_s or broker_s == 0:
        found = f"the broker wants {broker_s} s instead of keepalive_s = {own_s}: a dead link is noticed later"
        return warn("keep_alive", found, "lower the broker's keep-alive, or set mqtt.keepalive_s to it")
    return ok("keep_alive", f"{broker_s} s")


def _session(kept_s: int, asked_s: int) -> Finding:
    if not asked_s:
        advice = "set mqtt.session_expiry_s to the longest absence to survive"
        return warn("session_expiry", "0 s: what comes while the daemon is away is lost", advice)
    if kept_s < asked_s:
        found = f"the broker keeps {kept_s:,} s of session_expiry_s = {asked_s:,}: after that, what came is lost"
        return warn("session_expiry", found, "raise it at the broker, or reckon with the shorter time")
    return ok("session_expiry", f"{kept_s:,} s")
