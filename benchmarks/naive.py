"""What one writes by hand in an afternoon: paho, json, numpy, onnxruntime. The baseline of main_job.

python benchmarks/naive.py --model model.onnx --labels idle,run --topic sensors/1 --results results/1
"""

import argparse
import json
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion


class Sliding:
    """One sample at a time into a window."""

    def __init__(self, length: int, hop: int) -> None:
        self.samples: deque[list[float]] = deque(maxlen=length)
        self.hop, self.due = hop, length

    def push(self, sample: list[float]) -> Iterator[np.ndarray[Any, Any]]:
        self.samples.append(sample)
        self.due -= 1
        if self.due == 0:
            self.due = self.hop
            yield np.array(self.samples, dtype=np.float32)


class Chunked:
    """Arrays of samples into windows."""

    def __init__(self, length: int, hop: int, channels: int) -> None:
        self.samples, self.length, self.hop = np.empty((0, channels), np.float32), length, hop

    def push(self, samples: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
        self.samples = np.concatenate([self.samples, samples])
        while len(self.samples) >= self.length:
            yield self.samples[: self.length]
            self.samples = self.samples[self.hop :]


class Whole:
    """A message is a window."""

    def push(self, values: list[list[float]]) -> Iterator[np.ndarray[Any, Any]]:
        yield np.array(values, dtype=np.float32)


def windowing(args: argparse.Namespace, channels: int) -> Whole | Chunked | Sliding:
    if not args.length:
        return Whole()
    if args.raw:
        return Chunked(args.length, args.hop, channels)
    return Sliding(args.length, args.hop)


def main() -> None:
    args = parse()
    client = make_client(args, ort.InferenceSession(args.model))
    client.connect(args.host, args.port)
    client.loop_forever()


def make_client(args: argparse.Namespace, session: ort.InferenceSession) -> Client:
    labels = args.labels.split(",")
    x = session.get_inputs()[0]
    channels = x.shape[1 if args.channels_first else -1]
    windows = windowing(args, channels)
    received = -1

    def on_connect(client: Client, *_: object) -> None:
        client.subscribe(args.topic, qos=args.qos)

    def on_message(client: Client, _: object, message: MQTTMessage) -> None:
        nonlocal received
        received += 1
        if args.raw:
            seq = received
            values = np.frombuffer(message.payload, args.raw).reshape(-1, channels).astype(np.float32) * args.scale
        else:
            reading = json.loads(message.payload)
            seq, values = reading["seq"], reading["v"]
        for window in windows.push(values):
            inputs = window.T[None] if args.channels_first else window.reshape(1, *x.shape[1:])
            scores = session.run(None, {x.name: inputs})[0][0]
            best = int(np.argmax(scores))
            result = {
                "seq": seq,
                "label": labels[best],
                "score": float(scores[best]),
                "scores": dict(zip(labels, scores.tolist(), strict=True)),
            }
            client.publish(args.results, json.dumps(result), qos=args.qos)

    client = Client(CallbackAPIVersion.VERSION2)
    client.on_connect = on_connect
    client.on_message = on_message
    return client


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--model", required=True)
    parser.add_argument("--labels", required=True, help="comma-separated")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--qos", type=int, default=0)
    parser.add_argument("--raw", help="numpy dtype of bytes; without it messages are JSON")
    parser.add_argument("--scale", type=np.float32, default=np.float32(1))
    parser.add_argument("--length", type=int, help="samples in a window; without it a message is a window")
    parser.add_argument("--hop", type=int, default=1)
    parser.add_argument("--channels-first", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
