"""How soon the app answers: the first page, the first candidate on the chart, and plans of many visitors beside a run.

python examples/benchmarks/app.py --visitors 20
"""

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from gradio_client import Client

from hf_prune.app.forms import DEMO


def main() -> None:
    """Start the app, begin a run, plan beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as home, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        begin = time.perf_counter()
        with started(home, port) as app:
            try:
                url = f"http://127.0.0.1:{port}"
                print(f"first page after {served(url, begin):.1f} s")
                # The processes of runs have loaded torch by then, as when a person has read the page.
                time.sleep(20)
                waited = first_candidate(url, Path(home))
                print(f"first candidate {waited:.1f} s behind the start of a run")
                seconds, errors = plans(url, a.visitors)
                print(
                    f"{a.visitors} visitors planning at once beside it: "
                    f"median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s, {errors} errors"
                )
            finally:
                app.terminate()


def started(home: str, port: int) -> subprocess.Popen:
    """The app, silent, in a process of its own."""
    command = [sys.executable, "-m", "hf_prune.cli", "ui", "--no-browser"]
    command += ["--home", home, "--port", str(port)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def served(url: str, begin: float) -> float:
    """Seconds until the page is there."""
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return time.perf_counter() - begin
        except OSError:
            time.sleep(0.05)


def first_candidate(url: str, home: Path) -> float:
    """Seconds from the request of a run to its first scored candidate."""
    client = Client(url, verbose=False)
    begin = time.perf_counter()
    client.predict(DEMO, "collapse", 0.25, api_name="/compress")
    while not any('"event": "Scored"' in p.read_text() for p in home.glob("*/events.jsonl")):
        time.sleep(0.05)
    return time.perf_counter() - begin


def plans(url: str, visitors: int) -> tuple[list[float], int]:
    """Seconds of every visitor's plan, and how many failed."""
    clients = [Client(url, verbose=False) for _ in range(visitors)]
    seconds, errors = [], []

    def one(client: Client) -> None:
        begin = time.perf_counter()
        try:
            client.predict(DEMO, "collapse", 0.25, api_name="/plan")
        except Exception as e:
            errors.append(e)
        seconds.append(time.perf_counter() - begin)

    threads = [threading.Thread(target=one, args=(c,)) for c in clients]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return seconds, len(errors)


if __name__ == "__main__":
    main()
