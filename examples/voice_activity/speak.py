"""Six speakers at once: recordings with pauses between them, 100 ms a message, at the pace they were spoken.

Run as `speak.py [BROKER]`, by default localhost:1883.
"""

from __future__ import annotations

import sys
import time

from measure import speakers
from paho.mqtt import client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PER_SPEAKER = 10
MESSAGE = 800  # samples
MESSAGE_S = 0.1


def main(broker: str) -> None:
    host, _, port = broker.partition(":")
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.connect(host, int(port or 1883))
    client.loop_start()
    streams = {name: (wave * 2**15).astype("<i2") for name, (wave, _) in speakers(PER_SPEAKER).items()}
    longest = max(map(len, streams.values()))
    begun_s = time.monotonic()
    for number, at in enumerate(range(0, longest, MESSAGE)):
        time.sleep(max(0.0, begun_s + number * MESSAGE_S - time.monotonic()))
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("seq", str(number))]
        for name, wave in streams.items():
            if at < len(wave):
                client.publish(f"voice/{name}/pcm", wave[at : at + MESSAGE].tobytes(), qos=1, properties=properties)
    while client.want_write():
        time.sleep(MESSAGE_S)
    client.disconnect()
    client.loop_stop()
    sys.stdout.write(f"{len(streams)} speakers, {longest / 8000:.1f} s\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "localhost:1883")
