"""The reload certificate: the folder, loaded afresh by stock transformers, is the model that was searched."""

import errno
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hf_prune.errors import ReloadMismatch

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}
"""Largest allowed difference of two logits, as a share of the largest logit."""
CERTIFIED = (2, 64)
"""Windows and tokens per window that are compared."""
STREAMED_TOKENS = 16
"""Tokens per window where the result is read anew for every one of them."""
STEPPED = {**TOLERANCE, "float32": 1e-3}
"""The same with and without a cache: state-space layers make their state from a text in chunks, then step by step."""
COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("reload_probe.py")))
LOADING = {"missing": "missing_keys", "unexpected": "unexpected_keys", "mismatched": "mismatched_keys"}


def certify(
    folder: Path,
    tokens: torch.Tensor,
    expected: torch.Tensor,
    *,
    dtype: str,
    device: str,
    stored: str | None = None,
    trust_remote_code: bool = False,
    whole: bool = True,
) -> dict[str, Any]:
    """Reload `folder` in a fresh process and compare.

    Args:
        folder: a finished model folder.
        tokens: [N, T] int64.
        expected: [N, T, V] logits of the searched candidate, as the sweep computed them.
        dtype: precision both sides run in, e.g. `float32`.
        device: where the fresh process runs the model.
        stored: precision that the weights were rounded to behind `expected`; None when they were not.
        trust_remote_code: passed on to transformers.
        whole: there is memory for all of it; else weights stay on the disk until a layer is called, on the CPU.

    Returns:
        The certificate that goes into report.json.

    Raises:
        ReloadMismatch: it does not load, a tensor is missing, unexpected or of another shape, the logits differ, or
            cached decoding differs from uncached.
    """
    options = ["--trust-remote-code"] * trust_remote_code
    with tempfile.TemporaryDirectory() as scratch:
        if not whole:
            tokens, expected = tokens[:, :STREAMED_TOKENS], expected[:, :STREAMED_TOKENS]
            device, options = "cpu", [*options, "--offload", scratch]
        said = probe(folder, tokens, dtype, device, options)
    logits, cached = said.tensors["logits"], said.tensors["cached"]
    return _judge(folder.name, expected.float().cpu(), logits, cached, said.loading, dtype, stored or dtype)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a fresh process says of a model: logits by name, what transformers said on loading, digests by tensor."""

    tensors: dict[str, torch.Tensor]
    loading: dict[str, Any]
    digests: dict[str, str]


def probe(folder: Path, tokens: torch.Tensor, dtype: str, device: str, options: Sequence[str] = ()) -> Answer:
    """Load a folder in a fresh process, as a user without hf_prune does, and let it read some text.

    Args:
        folder: of a model.
        tokens: [N, T] int64.
        dtype: precision, e.g. `float32`.
        device: where it runs.
        options: of `reload_probe`.

    Raises:
        ReloadMismatch: it does not load.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.safetensors"
        windows = Path(scratch) / "windows.safetensors"
        save_file({"tokens": tokens.cpu().contiguous()}, windows)
        arguments = [str(folder.resolve()), str(windows), str(answer), dtype, device, *options]
        failed, said = _probed(arguments, Path(scratch) / "errors")
        if failed:
            last = (said.strip().splitlines() or ["no output"])[-1]
            if os.strerror(errno.ENOSPC) in last:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), scratch)
            raise ReloadMismatch(f"{folder.name} does not load in a fresh process: {last}")
        with safe_open(answer, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
            return Answer(tensors, *(json.loads(f.metadata()[key]) for key in ("loading", "digests")))


def _probed(arguments: list[str], errors: Path) -> tuple[bool, str]:
    """Whether the probe failed, and what it wrote to stderr."""
    # Elsewhere a process that has loaded torch does not fork well.
    if sys.platform == "linux":
        server = _server()
        try:
            server.stdin.write(json.dumps([str(errors), *arguments]) + "\n")
            server.stdin.flush()
            if code := server.stdout.readline().strip():
                return code != "0", errors.read_text(encoding="utf-8") if errors.exists() else ""
        except BrokenPipeError:
            pass
        _server.cache_clear()
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    return bool(done.returncode), done.stderr


@functools.cache
def _server() -> "subprocess.Popen[str]":
    """Forks for every folder; ends with this process."""
    command = [*COMMAND, "--serve", str(os.getpid())]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def _judge(
    name: str,
    expected: torch.Tensor,
    logits: torch.Tensor,
    cached: torch.Tensor,
    loading: dict[str, Any],
    dtype: str,
    stored: str,
) -> dict[str, Any]:
    wrong = {k: loading.get(key, []) for k, key in LOADING.items()}
    if any(wrong.values()):
        raise ReloadMismatch(f"{name} reloads with tensors missing, unexpected or of another shape: {wrong}.")
    if logits.shape != expected.shape:
        raise ReloadMismatch(f"{name} reloads with logits of shape {tuple(logits.shape)}, not {tuple(expected.shape)}.")
    largest = max(1.0, float(expected.abs().max()))
    exact = TOLERANCE[dtype] * largest
    bound = max(exact, TOLERANCE[stored] * largest)
    searched, stepped = float((logits - expected).abs().max()), float((cached - logits).abs().max())
    if not searched <= bound:
        raise ReloadMismatch(f"{name} reloads as another model: logits differ by {searched:.3g} (allowed {bound:.3g}).")
    if not stepped <= (allowed := STEPPED[dtype] * largest):
        raise ReloadMismatch(
            f"{name} decodes differently with its cache: logits differ by {stepped:.3g} (allowed {allowed:.3g})."
        )
    return {
        "ok": True,
        "max_logit_difference": searched,
        "cached_difference": stepped,
        "tolerance": bound,
        "dtype": dtype,
        **wrong,
        "transformers": loading["transformers"],
        "without_hf_prune": not loading["hf_prune_imported"],
    }
