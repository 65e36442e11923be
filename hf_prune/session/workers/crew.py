"""Orders and the workers that carry them out, one thread each: a lost worker is replaced and its order given again.

An order is a part of one piece of work for some of its members, say the members 0 to 32 on piece 5. What all orders of
a call have in common is sent to a worker once. Who asks may carry out orders, too. An order that was lost twice, or for
which memory was too small, is halved by its members; one of a single member is given up with a sentence.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from hf_prune.errors import HfPruneError

LOST_TWICE = 2
"""Losses of one order after which it is halved, and of one place in a row after which nobody is hired for it."""
LOOK = 0.5
"""Seconds between two looks at the clock."""


class Lost(Exception):
    """A worker is gone; says how."""


class OutOfMemory(Exception):
    """An order needs more memory than there is; its worker lives."""


class Order(NamedTuple):
    """Members `first` to `stop` on a piece; `lost` counts the workers that were lost with it."""

    piece: int
    first: int
    stop: int
    lost: int = 0

    @property
    def text(self) -> bytes:
        """For a worker."""
        return f"[{self.piece},{self.first},{self.stop}]".encode()


class Worker(Protocol):
    """Carries out one order at a time. Every method raises `Lost` once it is gone."""

    def open(self) -> None:
        """Wait until it has opened what it works with.

        Raises:
            HfPruneError: that cannot be opened.
        """

    def ask(self, common: bytes | None, order: bytes) -> None:
        """Begin; `common` is sent where it differs from the last order's, else None."""

    def answer(self, seconds: float) -> bytes | None:
        """What it found; None if it is not ready in so many seconds.

        Raises:
            OutOfMemory: as it says.
            HfPruneError: the order cannot be carried out by anybody.
        """

    def end(self) -> None:
        """Have it gone, whatever it does; it may be gone already."""


@dataclass
class Traffic:
    """What dividing took: orders given, bytes sent and received, workers hired and lost, orders that were halved."""

    orders: int = 0
    sent: int = 0
    received: int = 0
    hired: int = 0
    lost: list[str] = field(default_factory=list)
    halved: int = 0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds that an order may take: so many times the longest yet, `least` at least; `first` before there is one."""

    times: float = 20.0
    least: float = 120.0
    first: float = 3600.0

    def limit(self, longest: float) -> float:
        """When the longest took so many seconds."""
        return max(self.least, self.times * longest) if longest else self.first


class Crew:
    """As many workers as there are places.

    Args:
        places: hire a worker; called in a thread, again for every one that is lost.
        patience: with an order.
    """

    def __init__(self, places: Sequence[Callable[[], Worker]], patience: Patience | None = None) -> None:
        self.traffic, self.patience = Traffic(), patience or Patience()
        self._change = threading.Condition()
        self._todo: deque[Order] = deque()
        self._doing = 0
        self._common, self._call = b"", 0
        self._done: Callable[[Order, bytes], None] = lambda order, answer: None
        self._error: BaseException | None = None
        self._closed = False
        self._longest = 0.0
        self._workers: dict[int, Worker] = {}
        self._threads = [
            threading.Thread(target=self._serve, args=(n, place), name=f"worker {n + 1}", daemon=True)
            for n, place in enumerate(places)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def size(self) -> int:
        """Workers, who asks among them."""
        return len(self._threads) + 1

    def work(
        self,
        common: bytes,
        orders: Sequence[Order],
        done: Callable[[Order, bytes], None],
        own: Callable[[Order], bytes] | None = None,
    ) -> None:
        """Have orders carried out.

        Args:
            common: what they have in common.
            orders: of one call.
            done: told every answer, one at a time and in any order; of an order that was halved those of its parts.
            own: carries out an order here, beside the workers; raises `OutOfMemory`. None leaves all to them.

        Raises:
            HfPruneError: an order or a worker is given up.
        """
        with self._change:
            self._call += 1
            self._common, self._done, self._error = common, done, None
            self._todo, self._doing = deque(orders), 0
            self._change.notify_all()
        try:
            while self._left():
                # Whatever has taken a worker along is nothing to try here.
                order = self._take(lambda o: not o.lost) if own else None
                if order is None:
                    with self._change:
                        self._change.wait(LOOK)
                    continue
                self._carry_out(order, own)
        finally:
            with self._change:
                self._todo.clear()
                self._call += 1
        if self._error:
            raise self._error

    def close(self) -> None:
        """End all workers."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        for worker in list(self._workers.values()):
            worker.end()
        for thread in self._threads:
            thread.join(5.0)

    # What is to be done ----------------------------------------------------------------------------------------------

    def _left(self) -> bool:
        with self._change:
            return bool(self._todo or self._doing) and self._error is None and not self._closed

    def _take(self, wanted: Callable[[Order], bool]) -> Order | None:
        with self._change:
            order = next(filter(wanted, self._todo), None)
            if order is not None:
                self._todo.remove(order)
                self._doing += 1
                self.traffic.orders += 1
            return order

    def _finish(self, call: int, order: Order, answer: bytes, seconds: float) -> None:
        with self._change:
            self._longest = max(self._longest, seconds)
            if call == self._call:
                try:
                    self._done(order, answer)
                except Exception as e:
                    # A full disk, say, which who asked is to hear of.
                    self._give_up(e)
                self._doing -= 1
                self._change.notify_all()

    def _again(self, call: int, orders: Sequence[Order]) -> None:
        """These instead of one that was not carried out."""
        with self._change:
            if call == self._call:
                self._todo.extendleft(reversed(orders))
                self._doing -= 1
                self._change.notify_all()

    def _give_up(self, error: BaseException) -> None:
        with self._change:
            self._error = self._error or error
            self._change.notify_all()

    def _halve(self, call: int, order: Order, why: str) -> None:
        if order.stop - order.first < 2:
            self._give_up(
                HfPruneError(
                    f"One candidate alone is too much for a worker ({why}); lower --length, or run fewer --workers."
                )
            )
            return
        self.traffic.halved += 1
        middle = (order.first + order.stop) // 2
        self._again(call, [order._replace(stop=middle, lost=0), order._replace(first=middle, lost=0)])

    # Who does it -----------------------------------------------------------------------------------------------------

    def _carry_out(self, order: Order, own: Callable[[Order], bytes]) -> None:
        call, begin = self._call, time.monotonic()
        try:
            answer = own(order)
        except OutOfMemory as e:
            self._halve(call, order, str(e))
            return
        self._finish(call, order, answer, time.monotonic() - begin)

    def _serve(self, number: int, hire: Callable[[], Worker]) -> None:
        """A place's thread: hires, gives orders, and hires again."""
        failed = 0
        while not self._closed:
            try:
                worker = self._opened(number, hire)
            except Lost as e:
                if self._closed:
                    return
                failed += 1
                self.traffic.lost.append(f"worker {number + 1}, while it opened the model: {e}")
                if failed == LOST_TWICE:
                    self._stay_without(
                        HfPruneError(
                            f"Worker {number + 1} ended twice while it opened the model ({e}), perhaps for want of "
                            "memory; run fewer --workers."
                        )
                    )
            except BaseException as e:
                self._stay_without(e)
            else:
                failed = 0
                self.traffic.hired += 1
                self._serve_with(number, worker)
                worker.end()

    def _opened(self, number: int, hire: Callable[[], Worker]) -> Worker:
        worker = hire()
        with self._change:
            self._workers[number] = worker
        try:
            if self._closed:
                raise Lost("it was not needed any more")
            worker.open()
        except BaseException:
            worker.end()
            raise
        return worker

    def _stay_without(self, error: BaseException) -> None:
        """Nobody is hired for a place; who asks is told, and who asks later, too."""
        with self._change:
            while not self._closed:
                self._give_up(error)
                self._change.wait(LOOK)

    def _serve_with(self, number: int, worker: Worker) -> None:
        """Give orders until the worker is lost."""
        known = b""
        while (given := self._next()) is not None:
            call, common, order = given
            begin = time.monotonic()
            try:
                worker.ask(common if common != known else None, order.text)
                self.traffic.sent += len(order.text) + (len(common) if common != known else 0)
                known = common
                while (answer := worker.answer(LOOK)) is None:
                    seconds = time.monotonic() - begin
                    if self._closed or seconds > self.patience.limit(self._longest):
                        raise Lost(f"it gave no answer for {seconds:.0f} seconds")
            except OutOfMemory as e:
                self._halve(call, order, str(e))
            except HfPruneError as e:
                self._give_up(e)
                self._again(call, [order])
            except Lost as e:
                if not self._closed:
                    self.traffic.lost.append(f"worker {number + 1}: {e}")
                    lost = order._replace(lost=order.lost + 1)
                    if lost.lost < LOST_TWICE:
                        self._again(call, [lost])
                    else:
                        self._halve(call, lost, str(e))
                return
            else:
                self.traffic.received += len(answer)
                self._finish(call, order, answer, time.monotonic() - begin)

    def _next(self) -> tuple[int, bytes, Order] | None:
        """The next order, waited for; None once the crew is closed."""
        with self._change:
            while not self._closed:
                if (order := self._take(lambda o: True)) is not None:
                    return self._call, self._common, order
                self._change.wait(LOOK)
        return None
