"""How long the stages of a run took."""

import time


class Clock:
    """Wall seconds per stage."""

    def __init__(self) -> None:
        self.started = self.last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Close the stage that ran until now."""
        now = time.monotonic()
        self.laps[name] = round(self.laps.get(name, 0.0) + now - self.last, 2)
        self.last = now

    @property
    def seconds(self) -> dict[str, float]:
        """All laps and their total."""
        return {**self.laps, "total": round(time.monotonic() - self.started, 2)}
