"""Start the stand-in Hub by hand and fill it from folders.

python -m tests.hub --port 8123 --root /tmp/hub --seed ns/base=examples/model
export HF_ENDPOINT=http://127.0.0.1:8123 HF_TOKEN=hf_ns_secret
"""

import argparse
import signal
from pathlib import Path

from tests.hub import Hub


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; a free one by default")
    parser.add_argument("--root", type=Path, required=True, help="folder for uploaded contents")
    parser.add_argument("--seed", action="append", default=[], metavar="NS/NAME=FOLDER", help="model from a folder")
    parser.add_argument("--dataset", action="append", default=[], metavar="NS/NAME=FOLDER", help="same for a dataset")
    args = parser.parse_args()
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    hub = Hub(args.root, args.port)
    for kind, pairs in (("model", args.seed), ("dataset", args.dataset)):
        for pair in pairs:
            id, _, folder = pair.partition("=")
            print(f"{kind} {id}@{hub.seed(id, Path(folder), kind).head}")
    hub.start()
    print(f"HF_ENDPOINT={hub.endpoint} HF_TOKEN={next(iter(hub.users))}", flush=True)
    signal.sigwait(stops)


if __name__ == "__main__":
    main()
