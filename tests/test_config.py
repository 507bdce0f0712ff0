from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.config import load
from edge_runtime.errors import ConfigError

GOOD = """
[node]
id = "press-hall-1"
state_dir = "/var/lib/edge-runtime"

[mqtt]
url = "mqtts://broker.local:8883"
ca = "ca.pem"
username = "node"
password_file = "/etc/edge-runtime/mqtt.pass"

[models.bearing]
bundle = "bearing-1.4.2.edge"

[pipelines.vibration]
source = { topic = "plant/+machine/vib", qos = 1, format = "raw", dtype = "int16", channels = 3, scale = 0.0039 }
window = { samples = 2048, hop = 1024, max_gap_samples = 4, on_gap = "reset" }
model = "bearing"
decide = { alarm_on = "not ok", score = 0.8, k = 3, n = 5 }
delivery = "memory"
queue = { max = 256, when_full = "drop_oldest", max_age_s = 2.0 }
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "device.toml"
    path.write_text(text)
    return path


def test_the_documented_configuration_is_read_and_paths_start_at_its_folder(tmp_path: Path) -> None:
    config = load(write(tmp_path, GOOD))

    assert config.pipelines["vibration"].source.dtype == "int16"
    assert config.pipelines["vibration"].queue.max_age_s == 2.0
    assert config.models["bearing"].bundle == str(tmp_path / "bearing-1.4.2.edge")
    assert config.mqtt.ca == str(tmp_path / "ca.pem")
    assert config.mqtt.password_file == "/etc/edge-runtime/mqtt.pass"


@pytest.mark.parametrize(
    ("found", "put", "key", "words"),
    [
        ('id = "press-hall-1"', 'id = "press hall"', "node.id", ["'press hall'", "[A-Za-z0-9_-]"]),
        ("[models.bearing]", '[models."a b"]', "models.a b", ["'a b'"]),
        ('model = "bearing"', 'model = "baering"', "pipelines.vibration.model", ["baering", "bearing"]),
        ("plant/+machine/vib", "plant/+/vib", "pipelines.vibration.source.topic", ["name it"]),
        ("plant/+machine/vib", "$share/g/plant/vib", "pipelines.vibration.source.topic", ["shared subscription"]),
        ("vibration]", '"-"]', "pipelines.-", ["no pipeline"]),
        ("mqtts://broker.local:8883", "mqtt://a..b", "mqtt", ["host"]),
        ("plant/+machine/vib", "#everything", "pipelines.vibration.source.topic", ["own results"]),
        ("max = 256", "max = 1024", "pipelines.vibration.queue.max", ["1024", "receive_maximum"]),
        ("drop_oldest", "drop_odlest", "pipelines.vibration.queue.when_full", ["drop_odlest", "drop_oldest"]),
        ("k = 3", "k = 0", "pipelines.vibration.decide.k", ["0"]),
        ('delivery = "memory"', 'delivery = "norml"', "pipelines.vibration.delivery", ["norml", "normal", "memory"]),
        ("mqtts://broker.local:8883", "http://x", "mqtt", ["mqtt://"]),
        ("k = 3, n = 5 }", "k = 3, n = 5 }\ndeadline_ms = -1", "pipelines.vibration.deadline_ms", ["-1", "at least 0"]),
        ("[mqtt]", "metrics_interval_s = 1e-9\n[mqtt]", "node", ["metrics_interval_s = 1e-09", "0 or at least 0.1"]),
        ("[mqtt]", "metrics_interval_s = -1\n[mqtt]", "node.metrics_interval_s", ["-1", "at least 0"]),
        ("qos = 1", "clock_synced = true", "pipelines.vibration.source", ["clock_synced", "time_property with it"]),
        ("qos = 1", 'time_field = "t"', "pipelines.vibration.source", ["raw takes user properties"]),
        ("[mqtt]", "[latency]\nslowest = 101\n[mqtt]", "latency.slowest", ["101", "at most 100"]),
    ],
)
def test_what_cannot_work_is_refused_with_file_key_found_and_allowed(
    tmp_path: Path, found: str, put: str, key: str, words: list[str]
) -> None:
    assert found in GOOD
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, GOOD.replace(found, put)))

    assert caught.value.path == str(tmp_path / "device.toml")
    assert caught.value.key.startswith(key)
    for word in words:
        assert word in str(caught.value)


def test_a_source_of_qos_0_cannot_block_and_one_that_blocks_may_ask_for_more_than_the_broker_sends(
    tmp_path: Path,
) -> None:
    text = GOOD.replace("drop_oldest", "block")
    assert load(write(tmp_path, text.replace("max = 256", "max = 4096"))).pipelines["vibration"].queue.blocks

    with pytest.raises(ConfigError, match=r"vibration\.queue\.when_full: QoS 0 cannot be held back.*source\.qos = 1"):
        load(write(tmp_path, text.replace("qos = 1", "qos = 0")))


@pytest.mark.parametrize("interval_s", [0, 0.1])
def test_metrics_are_off_or_at_most_ten_a_second(tmp_path: Path, interval_s: float) -> None:
    text = GOOD.replace("[mqtt]", f"metrics_interval_s = {interval_s}\n[mqtt]")

    assert load(write(tmp_path, text)).node.metrics_interval_s == interval_s


def test_a_deadline_that_nobody_would_watch_is_refused(tmp_path: Path) -> None:
    text = GOOD + "deadline_ms = 20.0\n"
    assert load(write(tmp_path, text)).pipelines["vibration"].deadline_ms == 20.0

    with pytest.raises(ConfigError, match=r"pipelines\.vibration\.deadline_ms.*latency\.enabled = false"):
        load(write(tmp_path, text + "[latency]\nenabled = false\n"))


def test_a_configuration_without_pipelines_is_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("[pipelines.vibration]")] + "[pipelines]\n"

    with pytest.raises(ConfigError, match="at least one"):
        load(write(tmp_path, text))


@pytest.mark.parametrize("key", ["state_dir = ", "ca = ", "bundle = ", "topic = "])
def test_a_nul_character_is_refused_wherever_a_text_is(tmp_path: Path, key: str) -> None:
    text = GOOD.replace(key + '"', key + r'"\u0000')

    with pytest.raises(ConfigError, match=r'found "\\u0000.*wanted a text'):
        load(write(tmp_path, text))


@pytest.mark.parametrize("key", ["client_id", "username"])
def test_a_name_longer_than_any_broker_takes_is_refused(tmp_path: Path, key: str) -> None:
    text = GOOD.replace('username = "node"\n', "").replace("password_file", "# password_file")

    with pytest.raises(ConfigError, match="at most 1024 characters"):
        load(write(tmp_path, text.replace("[mqtt]", f'[mqtt]\n{key} = "{"x" * 1025}"')))
