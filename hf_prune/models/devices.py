"""The device that a run computes on."""

import torch

from hf_prune.errors import InvalidRecipe

REFUSALS = (RuntimeError, AssertionError, NotImplementedError, ImportError)
"""What torch raises for a device that it was not built for, or that is not there."""


def device_of(name: str) -> torch.device:
    """The device that a recipe names, the first where it names several; auto is the accelerator, where there is one.

    Args:
        name: as `Recipe.machine.device`.

    Raises:
        InvalidRecipe: this machine has no such device.
    """
    name = name.partition(",")[0]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except REFUSALS as e:
        first = str(e).strip().partition("\n")[0].rstrip(".")
        raise InvalidRecipe(
            f"There is no device {name} that torch {torch.__version__} can use here ({first[:160]}); leave out "
            "--device, or install a torch that is built for it."
        ) from None


def devices_of(name: str, workers: int) -> tuple[str, ...]:
    """Where each of so many workers computes: the first is the process that asks.

    Args:
        name: as `Recipe.machine.device`; several are given one worker each.
        workers: at least 1.

    Raises:
        InvalidRecipe: there are fewer accelerators than workers, or another number of workers than of devices.
    """
    named = name.split(",")
    if len(named) > 1:
        if workers not in (1, len(named)):
            raise InvalidRecipe(
                f"--device names {len(named)} devices, each of which has one worker, and --workers asks for {workers}; "
                "leave --workers out."
            )
        return tuple(str(device_of(one)) for one in named)
    first = device_of(name)
    if first.type == "cpu" or workers == 1:
        return (str(first),) * workers
    there = torch.accelerator.device_count() if first.index is None else 1
    if there < workers:
        raise InvalidRecipe(
            f"--workers {workers} needs as many devices of the kind {first.type}, and there are {there}; ask for "
            "fewer, or name them all with --device."
        )
    return tuple(f"{first.type}:{n}" for n in range(workers))
