"""How near forecasts come: runs with their times forecast and taken, stage by stage.

    python examples/benchmarks/forecast.py MODEL [--data TEXT] [--cpu] [FLAGS OF compress]

prints a table of seconds forecast, seconds taken and their ratio. With --cpu both are seconds of processor time divided
by the threads, which another program on the same machine does not change; stages that use one core look short then.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402

from hf_prune.evaluation import throughput  # noqa: E402
from hf_prune.events import Advanced, Finished, Forecasted, Scored, Stage  # noqa: E402
from hf_prune.pipeline import compress  # noqa: E402
from hf_prune.recipe import Recipe  # noqa: E402
from hf_prune.session import clock  # noqa: E402


def processor() -> float:
    """Seconds that this process and those it started computed, by thread."""
    used = os.times()
    return (time.process_time() + used.children_user + used.children_system) / torch.get_num_threads()


def main(fields: list[str]) -> None:
    asked = dict(zip((f.removeprefix("--").replace("-", "_") for f in fields[1::2]), fields[2::2], strict=True))
    if asked.pop("cpu", None):
        clock.time.monotonic = processor
        throughput.time.perf_counter = processor
    values = {k: v.split(",") if k in ("data", "baselines", "tasks", "variants") else v for k, v in asked.items()}
    forecast: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe.of(base=fields[0], output=str(Path(folder, "result")), **values)
        for event in compress(recipe):
            if isinstance(event, Forecasted):
                forecast = event.seconds
                print("left out:", "; ".join(event.left_out) or "nothing", flush=True)
            elif isinstance(event, Stage):
                print(f"{time.strftime('%X')} {event.name} {event.detail}", flush=True)
            elif isinstance(event, Finished):
                taken = event.report["seconds"]
            elif not isinstance(event, Scored | Advanced):
                continue
    print(f"\n{'stage':10} {'forecast':>9} {'taken':>9} {'ratio':>6}")
    rows = [*((name, forecast[name], taken.get(name, 0.0)) for name in forecast)]
    for name, told, took in [*rows, ("all", sum(forecast.values()), sum(t for _, _, t in rows))]:
        print(f"{name:10} {told:9.1f} {took:9.1f} {told / took if took else 0:6.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
