"""An attempt to connect that does not hold up the loop."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable


class Dial:
    """Runs one blocking connect (name lookup, TCP, TLS) on a thread of its own; readable when it is over."""

    def __init__(self, connect: Callable[[], object]) -> None:
        self._connect = connect
        self._error: BaseException | None = None
        self._over = False
        self._reader, self._writer = socket.socketpair()
        threading.Thread(target=self._run, name="mqtt-connect", daemon=True).start()

    def _run(self) -> None:
        try:
            self._connect()
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed: result() raises it in the network thread
            self._error = error
        finally:
            self._over = True
            self._writer.close()

    @property
    def over(self) -> bool:
        return self._over

    def fileno(self) -> int:
        return self._reader.fileno()

    def result(self) -> None:
        """Returns when the connect did; raises what it raised. Only once, when it is over."""
        self._reader.close()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Let the attempt end unseen."""
        self._reader.close()
