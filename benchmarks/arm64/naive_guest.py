"""The guest that is the script of benchmarks/naive.py, fed with recorded reads; each round of paho's loop is counted.

`python -m benchmarks.arm64.naive_guest`, with the script's arguments, in a folder that holds the recording.
"""

from __future__ import annotations

import onnxruntime as ort
from paho.mqtt.client import Client

from benchmarks import naive
from benchmarks.arm64.far_end import HOST, FarEnd, Recording, Report, unread_bytes
from export.arm64.counter import mark


def main() -> None:
    recording = Recording.load()
    far_end = FarEnd(recording)
    args = naive.parse()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # by default as many as there are cores, which wait by spinning
    client = naive.make_client(args, ort.InferenceSession(args.model, options))
    client.connect(HOST, far_end.port)
    while not far_end.is_subscribed or unread_bytes(_fileno(client)):
        client.loop(0.01)
        far_end.serve()
    rounds = []
    for read in recording.reads:
        far_end.send(read, _fileno(client))
        count = 0
        while unread_bytes(_fileno(client)) or client.want_write():
            if read.is_counted:
                mark()
            client.loop()
            if read.is_counted:
                mark()
            count += 1
        far_end.settle()
        if read.is_counted:
            rounds.append(count)
    Report(tuple(far_end.results), tuple(rounds)).save()


def _fileno(client: Client) -> int:
    sock = client.socket()
    if sock is None:
        raise ConnectionError("paho has closed the connection")
    return sock.fileno()


if __name__ == "__main__":
    main()
