"""The guest that is the script of benchmarks/naive.py, fed with recorded reads; each round of paho's loop is counted.

`python -m benchmarks.arm64.naive_guest`, with the script's arguments, in a folder that holds the recording.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from benchmarks.arm64.far_end import HOST, FarEnd, Recording, Report, unread_bytes
from benchmarks.arm64.moment import fix
from export.arm64.marks import mark

if TYPE_CHECKING:
    from paho.mqtt.client import Client


def main() -> None:
    fix()
    import onnxruntime as ort  # noqa: PLC0415
    from paho.mqtt import client as paho  # noqa: PLC0415  takes its clock when imported

    from benchmarks import naive  # noqa: PLC0415

    paho._socketpair_compat = _pair  # noqa: SLF001
    recording = Recording.load()
    far_end = FarEnd(recording)
    args = naive.parse()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # by default as many as there are cores, which wait by spinning
    client = naive.make_client(args, ort.InferenceSession(args.model, options))
    client.connect(HOST, far_end.port)
    for _ in far_end.connect(lambda: _fileno(client)):
        _loop(client, is_counted=False)
    rounds = []
    for read in recording.reads:
        count = sum(_loop(client, is_counted=read.is_counted) for _ in far_end.feed(read, _fileno(client)))
        if read.is_counted:
            rounds.append(count)
    Report(tuple(far_end.results), tuple(rounds)).save()


def _loop(client: Client, *, is_counted: bool) -> int:
    """Let it read and write all there is; the rounds that took."""
    count = 0
    while unread_bytes(_fileno(client)) or client.want_write():
        if is_counted:
            mark()
        client.loop()
        if is_counted:
            mark()
        count += 1
    return count


def _pair() -> tuple[socket.socket, socket.socket]:
    """What paho wakes its own loop with: where it has a TCP connection, Linux decides when a byte is there."""
    pair = socket.socketpair()
    for end in pair:
        end.setblocking(False)
    return pair


def _fileno(client: Client) -> int:
    sock = client.socket()
    if sock is None:
        raise ConnectionError("paho has closed the connection")
    return sock.fileno()


if __name__ == "__main__":
    main()
