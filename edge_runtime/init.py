"""A first configuration for a bundle: what the bundle says as comments, what can be chosen as commented settings.

A commented setting has a line of its own, `# key = value`, and is valid beside the others, or in place of the line
that has the same key.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import msgspec

from edge_runtime.config import Config, ModelSettings, NodeSettings, load
from edge_runtime.delivery.overload import QueueSettings
from edge_runtime.errors import ConfigError
from edge_runtime.model.bundle import read
from edge_runtime.model.manifest import NAME_PATTERN, Manifest
from edge_runtime.monitor.latency import LatencySettings
from edge_runtime.mqtt.settings import MqttSettings, parse_url
from edge_runtime.mqtt.topics import Tree
from edge_runtime.records import InputSpec
from edge_runtime.stream.states import StateSettings

MAX_LISTED = 16
MAX_FIELDS = 32
MAX_NAME = 64
MAX_MESSAGE_BYTES = 1_000_000

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Choices(msgspec.Struct, frozen=True):
    """What the user chose. topic, pipeline: "" = made from the bundle's name."""

    node: str
    broker: str = "mqtt://localhost:1883"
    topic: str = ""
    pipeline: str = ""


class Written(msgspec.Struct, frozen=True):
    """The file, and commands to go on with. publish: sends rows of zeros that the model takes, a window if it can."""

    path: str
    check: str
    run: str
    subscribe: str
    publish: str


def node_name(host: str) -> str:
    """A valid node id from a host name: its first label, with "-" for what cannot stand in a topic."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", host.partition(".")[0])[:MAX_NAME].strip("-") or "node"


def init(bundle: Path, output: Path, choices: Choices) -> Written:
    """Write a configuration for a bundle, which loads.

    Raises ConfigError when the file is there already, cannot be written, or a choice is impossible; BundleError.
    """
    manifest = read(bundle).manifest
    try:
        text = render(manifest, _reference(bundle, output), choices)
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(str(output), "", "is there already and is not overwritten; name another file") from error
    except OSError as error:
        raise ConfigError(str(output), "", f"cannot be written: {error.strerror}") from error
    except UnicodeEncodeError as error:
        raise ConfigError(ascii(str(output)), "", f"{error.object!a} is not UTF-8, which TOML has to be") from error
    try:
        return _next_commands(load(output), output, manifest.input)
    except ConfigError:
        output.unlink()
        raise


def _reference(bundle: Path, output: Path) -> str:
    """The bundle's path, from the configuration's folder unless the two share nothing but the root."""
    folder = output.parent.resolve()
    path = bundle.parent.resolve() / bundle.name
    return str(path) if os.path.commonpath((folder, path)) == "/" else os.path.relpath(path, folder)


def render(manifest: Manifest, bundle: str, choices: Choices) -> str:
    """The file's text. bundle: its path as the file is to have it."""
    name = manifest.name.strip("-") or "model"
    pipeline = choices.pipeline or name
    sections = [
        _head(manifest),
        _node(choices),
        _mqtt(choices),
        _model(name, bundle),
        [
            f"[pipelines.{pipeline if re.fullmatch(NAME_PATTERN, pipeline) else _quoted(pipeline)}]",
            f"model = {_quoted(name)}",
            *_source(manifest.input, _quoted(choices.topic or f"sensors/+sensor/{name}")),
            *_rules(manifest),
        ],
        ["[latency]", *(f"# {key} = {value}" for key, value in _settings(LatencySettings()).items())],
        [
            "[store]",
            "# Results, and inputs of open windows, on disk; for a card that writing wears out:",
            '# profile = "sd-card"',
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _node(choices: Choices) -> list[str]:
    defaults = NodeSettings(id=choices.node)
    return [
        "[node]",
        f"id = {_quoted(choices.node)}",
        'state_dir = "state"',
        "# How often metrics are published; 0 for never.",
        f"# metrics_interval_s = {defaults.metrics_interval_s}",
        "# A model that takes longer for one window runs on the worker thread, not in the network's.",
        f"# inline_limit_ms = {defaults.inline_limit_ms}",
    ]


def _model(name: str, bundle: str) -> list[str]:
    return [
        f"[models.{name}]",
        f"bundle = {_quoted(bundle)}",
        '# Threads inside one operator: a number, 1 if left out, or "auto", which measures at the start.',
        '# intra_op_threads = "auto"',
        f"# max_batch = {ModelSettings(bundle=bundle).max_batch}",
    ]


def _head(manifest: Manifest) -> list[str]:
    spec = manifest.input
    rate, seconds, every = "", "", ""
    if spec.rate_hz:
        rate = f" at {spec.rate_hz:g} Hz"
        seconds, every = f" ({spec.length / spec.rate_hz:.3g} s)", f" ({spec.hop / spec.rate_hz:.3g} s)"
    lines = [
        f"For {manifest.model_id}, {_quoted(manifest.precision)}. Every setting: docs/configuration.md",
        f"A window is {spec.length} samples{rate}{seconds}; a new one begins every {spec.hop}{every}.",
        f"A sample is a row of {len(spec.channels)}:",
        *_listed([f"{_quoted(c)} [{_quoted(u)}]" for c, u in zip(spec.channels, spec.units, strict=True)]),
        "The model answers with:" if manifest.labels else "The model answers with an error,",
        *_listed([_quoted(label) for label in manifest.labels]),
    ]
    if not manifest.labels:
        lines.append(f"  an anomaly from {manifest.threshold} on")
    return [f"# {line}" for line in lines]


def _listed(items: list[str]) -> list[str]:
    more = [f"  and {len(items) - MAX_LISTED} more"] if len(items) > MAX_LISTED else []
    return [f"  {item}" for item in items[:MAX_LISTED]] + more


def _mqtt(choices: Choices) -> list[str]:
    defaults = MqttSettings(url="mqtt://localhost")
    return [
        "[mqtt]",
        f"url = {_quoted(choices.broker)}",
        '# ca = "ca.pem"' if choices.broker.startswith("mqtts:") else '# url = "mqtts://localhost:8883"',
        "# A user name; its password is the one line of the file named in password_file (chmod 600).",
        f"# username = {_quoted(choices.node)}",
        f"# root = {_quoted(defaults.root)}",
        f"# session_expiry_s = {defaults.session_expiry_s}",
        '# protocol = "3.1.1"',
        '# Who moves the messages: "lane", "callbacks" (paho\'s), or the lane where it can.',
        f"# client = {_quoted(defaults.client)}",
        "# What may wait for the socket; while it is more, further messages wait.",
        f"# max_unwritten_bytes = {defaults.max_unwritten_bytes}",
    ]


def _source(spec: InputSpec, topic: str) -> list[str]:
    """The setting, and others in its place. topic: quoted."""
    channels = len(spec.channels)
    head = f"source = {{ topic = {topic}, qos = 1, format ="
    rows = "[0.1, ...]" if channels == 1 else "[[0.1, ...], ...]"
    lines = [
        "",
        f"# JSON: a row of {channels}, or a list of rows: {rows}. The level of the topic after + names the stream.",
        f'{head} "json" }}',
        f'# JSON with a message number, by which gaps and duplicates are seen: {{"seq": 7, "rows": {rows}}}',
        f'# {head} "json", path = "rows", seq_field = "seq" }}',
        f'# And the time of its first row, of a clock as true as ours: {{"seq": 7, "time": 1.7e9, "rows": {rows}}}',
        f'# {head} "json", path = "rows", seq_field = "seq", time_field = "time", clock_synced = true }}',
    ]
    if channels <= MAX_FIELDS and len(set(spec.channels)) == channels and all(map(_FIELD.fullmatch, spec.channels)):
        fields = ", ".join(map(_quoted, spec.channels))
        lines += [
            f'# JSON with named numbers, an object or a list of them: {{"{spec.channels[0]}": 0.1, ...}}',
            f'# {head} "json", fields = [{fields}] }}',
        ]
    return [
        *lines,
        "# Bytes, for fast signals: little-endian, channels interleaved, times scale.",
        f'# {head} "raw", dtype = "int16", channels = {channels}, scale = 1.0 }}',
        "# The same with a message number, as an MQTT 5 user property.",
        f'# {head} "raw", dtype = "float32", channels = {channels}, seq_property = "seq" }}',
    ]


def _rules(manifest: Manifest) -> list[str]:
    """The settings of a pipeline beside its source, all commented."""
    hop = "" if manifest.states else f"hop = {manifest.input.hop}, "
    lines = [
        "",
        "# Samples between window starts; a gap up to max_gap_samples is bridged.",
        f'# window = {{ {hop}max_gap_samples = 0, on_gap = "reset" }}',
        "# The alarm goes on, and off, when k of the last n windows say so.",
        f"# decide = {{ {_alarm(manifest)}, k = 3, n = 5 }}",
        "# What may wait, and what gives way when input outruns the device.",
        f"# queue = {_table(QueueSettings())}",
        '# What was acknowledged survives a crash ("normal"), a loss of power as well ("full"), or neither ("memory").',
        '# delivery = "full"',
        "# A result for every window, or only when label or alarm change.",
        '# publish = "change"',
        "# A result written later than this after its last message is counted as a miss; 0 for none.",
        "# deadline_ms = 50.0",
        '# "inline" in the network thread, on the "worker" thread, or by node.inline_limit_ms.',
        '# execution = "auto"',
    ]
    if manifest.states:
        lines += ["# When the state of a stream begins anew.", f"# state = {_table(StateSettings())}"]
    return lines


def _alarm(manifest: Manifest) -> str:
    """The bundle's threshold; of two labels the second; of more, all but the first."""
    if not manifest.labels:
        return f"score = {msgspec.json.encode(manifest.threshold).decode()}"
    alarm_on = manifest.labels[-1] if len(manifest.labels) <= 2 else f"not {manifest.labels[0]}"
    return f"alarm_on = {_quoted(alarm_on)}, score = 0.5"


def _settings(settings: msgspec.Struct) -> dict[str, str]:
    """Each setting that has a value, in TOML."""
    values = msgspec.structs.asdict(settings).items()
    return {key: msgspec.json.encode(value).decode() for key, value in values if value is not None}


def _table(settings: msgspec.Struct) -> str:
    return f"{{ {', '.join(f'{key} = {value}' for key, value in _settings(settings).items())} }}"


def _quoted(text: str) -> str:
    """A TOML basic string on one line: JSON's escapes, and DEL, which TOML allows neither there nor in comments."""
    text.encode()
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


def _next_commands(config: Config, output: Path, spec: InputSpec) -> Written:
    name, pipeline = next(iter(config.pipelines.items()))
    broker = parse_url(config.mqtt.url)
    where = f"-h {shlex.quote(broker.host)} -p {broker.port}{' --cafile ca.pem' if broker.tls else ''}"
    results = shlex.quote(f"{Tree(config.mqtt.root, config.node.id).base}/p/{name}/#")
    channels = len(spec.channels)
    rows = min(spec.length, max(1, MAX_MESSAGE_BYTES // (len("0.0, ") * channels + len("[], "))))
    send = f"mosquitto_pub {where} -q 1 -s -t {shlex.quote(_example_topic(pipeline.source.topic))}"
    path = shlex.quote(str(output))
    return Written(
        path=str(output),
        check=f"edge-runtime check {path}",
        run=f"edge-runtime run {path}",
        subscribe=f"mosquitto_sub {where} -v -t {results}",
        publish=f"python3 -c 'print([[0.0] * {channels}] * {rows})' | {send}",
    )


def _example_topic(topic: str) -> str:
    """plant/+machine/vib -> plant/machine-1/vib."""
    levels = topic.split("/")
    return "/".join(f"{level[1:]}-1" if level.startswith(("+", "#")) else level for level in levels)
