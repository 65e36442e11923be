"""The dtypes of stored tensors."""

import functools
from collections.abc import Iterable

import torch

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}  # fmt: skip
"""By their names in safetensors files."""


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """That holds what all of them hold: float32 of float16 and bfloat16."""
    return functools.reduce(torch.promote_types, dtypes)
