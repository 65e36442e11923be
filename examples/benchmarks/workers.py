"""What do workers bring, and what does dividing cost? Speed of two beside one, messages and bytes, and 64 simulated.

One generation (32 candidates that lack a quarter of the layers) is scored by KL and similarity, by one process with one
thread and by two such processes; the figures must be the same to the last bit. Then the crew of a run gives the orders
of the same generation to simulated workers, which take the seconds that real chunks took, times what a larger model
takes more, and answer what real ones answered. What is measured is whether they ever wait.

    OMP_NUM_THREADS=1 python examples/benchmarks/workers.py --model ns/model
"""

import argparse
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

from hf_prune.data.bundled import demo_folder
from hf_prune.recipe import Recipe
from hf_prune.session.session import Session, open_session
from hf_prune.session.workers.crew import Crew, Order
from hf_prune.session.workers.search import working
from hf_prune.session.workers.worker import Common, carry_out, understood


class Simulated:
    """A worker that takes recorded seconds and gives recorded answers."""

    def __init__(self, seconds: list[float], answers: list[bytes], seed: int) -> None:
        self._seconds, self._answers, self._random = seconds, answers, random.Random(seed)
        self._until = 0.0

    def open(self) -> None:
        """Nothing to open."""

    def ask(self, common: bytes | None, order: bytes) -> None:
        """Begin."""
        self._until = time.monotonic() + self._random.choice(self._seconds)

    def answer(self, seconds: float) -> bytes | None:
        """After the time it takes."""
        left = self._until - time.monotonic()
        time.sleep(max(0.0, min(left, seconds)))
        return None if left > seconds else self._random.choice(self._answers)

    def end(self) -> None:
        """Nothing to end."""


def main() -> None:
    """Measure and print markdown tables."""
    a = arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as home:
        sessions = {n: session(a, Path(home, f"of-{n}"), n) for n in (1, 2)}
        generation = candidates(sessions[1], a.offspring)
        with working(sessions[2]) as crew:
            sessions[2].evaluator, sessions[1].evaluator  # noqa: B018 - opened now
            while not crew.traffic.hired:
                time.sleep(0.2)
            told(sessions, generation, crew, a.rounds)
        simulate(sessions[1], generation, a)


def arguments() -> argparse.Namespace:
    """Command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", help="a base; default: the bundled one")
    p.add_argument("--data", help="as --data of compress; default: the bundled text")
    p.add_argument("--offspring", type=int, default=32)
    p.add_argument("--sequences", type=int, default=16)
    p.add_argument("--length", type=int, default=256)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--larger", type=float, default=0.0, help="times that a chunk of the larger model takes longer")
    p.add_argument("--chunk-seconds", type=float, default=2.3, help="or the seconds of its mean chunk")
    p.add_argument("--chunks", type=int, default=1024, help="of a sweep of the simulated workers")
    p.add_argument("--workers", type=int, nargs="+", default=[8, 64], help="simulated")
    return p.parse_args()


def session(a: argparse.Namespace, output: Path, workers: int) -> Session:
    """A run that is opened and not begun."""
    demo = demo_folder()
    return open_session(
        Recipe.of(base=a.model or str(demo / "storymath-16l"), data=(a.data or str(demo / "text"),), ratio=0.25,
                  output=str(output), workers=workers, device="cpu", dtype="float32", sequences=a.sequences,
                  length=a.length, tasks=(str(next(demo.glob("tasks/*.report.jsonl"))),))
    )  # fmt: skip


def candidates(one: Session, count: int) -> list:
    """Random cuts of a quarter of the layers."""
    scorer, rng = one.scorer, np.random.default_rng(0)
    return [scorer.blueprint(scorer.space.random(rng)) for _ in range(count)]


def told(sessions: dict[int, Session], generation: list, crew: Crew, rounds: int) -> None:
    """Two beside one."""
    seconds, found = {1: [], 2: []}, {}
    for _ in range(rounds):
        for n, one in sessions.items():
            started = time.perf_counter()
            found[n] = repr(one.evaluator.evaluate(generation, one.evidence.full))
            seconds[n].append(time.perf_counter() - started)
    best = {n: min(s) for n, s in seconds.items()}
    chunks = len(sessions[1].evaluator.chunks(generation, sessions[1].evidence.full))
    same = "the same" if found[1] == found[2] else "DIFFERENT"
    print(f"{len(generation)} candidates, {chunks} chunks; of one and of two workers the figures are {same}\n")
    print("| workers of one thread | seconds of a generation | faster by |\n|---|---:|---:|")
    for n, s in best.items():
        print(f"| {n} | {s:.2f} | {best[1] / s:.2f} x |")
    t = crew.traffic
    print(f"\n{t.orders} orders in {rounds} generations; sent to the other process {t.sent:,} bytes, received "
          f"{t.received:,}; lost {len(t.lost)}\n")  # fmt: skip


def simulate(one: Session, generation: list, a: argparse.Namespace) -> None:
    """Many that take recorded seconds."""
    fidelity, evaluator = one.evidence.full, one.evaluator
    chunks = evaluator.chunks(generation, fidelity)
    common = Common(tuple(generation), fidelity, chunks, 32)
    seconds, answers = [], []
    for n in range(len(chunks)):
        started = time.perf_counter()
        answers.append(carry_out(evaluator, common, Order(n, 0, len(generation))))
        seconds.append(time.perf_counter() - started)
    factor = a.larger or a.chunk_seconds / (sum(seconds) / len(seconds))
    text, taken = common.to_json().encode(), [s * factor for s in seconds]
    print(f"a chunk takes {min(taken):.2f} to {max(taken):.2f} s; orders have {len(text):,} bytes in common, and an "
          f"answer has {max(map(len, answers)):,}\n")  # fmt: skip
    print("| simulated workers | seconds | of work | efficiency | the run's processor |\n|---|---:|---:|---:|---:|")
    for workers in a.workers:
        crew = Crew([lambda n=n: Simulated(taken, answers, n) for n in range(workers)])
        work, lock = [0.0], threading.Lock()
        orders = [Order(n, 0, len(generation)) for n in range(a.chunks * workers // max(a.workers))]
        with tempfile.TemporaryFile() as kept:

            def done(order: Order, answer: bytes, kept=kept, work=work, lock=lock) -> None:
                with lock:
                    kept.write(answer + b"\n")
                    kept.flush()
                    understood(answer)
                    work[0] += 1

            busy, started = time.process_time(), time.perf_counter()
            crew.work(text, orders, done)
            wall, busy = time.perf_counter() - started, time.process_time() - busy
        crew.close()
        mean = sum(taken) / len(taken)
        print(f"| {workers} | {wall:.1f} | {work[0] * mean / workers:.1f} | "
              f"{work[0] * mean / workers / wall:.1%} | {busy / wall:.1%} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
