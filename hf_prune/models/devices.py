"""The device that a run computes on."""

import torch

from hf_prune.errors import InvalidRecipe

REFUSALS = (RuntimeError, AssertionError, NotImplementedError, ImportError)
"""What torch raises for a device that it was not built for, or that is not there."""


def device_of(name: str) -> torch.device:
    """The device that a recipe names; auto is the accelerator, where there is one.

    Args:
        name: as `Recipe.machine.device`.

    Raises:
        InvalidRecipe: this machine has no such device.
    """
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
