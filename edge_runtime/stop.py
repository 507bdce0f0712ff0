"""The request to stop: the first SIGTERM or SIGINT asks, the second ends the process at once."""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopSignal:
    """Installed before anything slow, so that no moment of the start is without it."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = True
