"""Run by path in a fresh process: loads a saved model with stock transformers and says what it computes.

Imports nothing of hf_prune, so that a pass means that users without it get the same model.
Usage: reload_probe.py FOLDER WINDOWS.safetensors ANSWER.safetensors DTYPE DEVICE
                       [--adapter FOLDER --loaded DTYPE] [--offload FOLDER] [--uncached]
                       [--trust-remote-code] [--allow-pickle]
       reload_probe.py --serve PID
                                  the same for every line of stdin (JSON: a file for stderr, then the arguments), in
                                  forks of a process that has imported transformers and nothing else; prints exit codes,
                                  and ends with the process PID, its parent
"""

import argparse
import ctypes
import hashlib
import inspect
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

SERVES = __name__ == "__main__" and sys.argv[1:2] == ["--serve"]
LOOK = 0.25
"""Seconds between two looks for the parent. The end of stdin is no sign: others may hold its other end."""


def _look(*_: object) -> None:
    if os.getppid() != int(sys.argv[2]):
        os._exit(1)


if SERVES:
    # What follows takes seconds to import.
    signal.signal(signal.SIGALRM, _look)
    signal.setitimer(signal.ITIMER_REAL, LOOK, LOOK)

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

PR_SET_PDEATHSIG = 1
VOCABULARIES = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight", "embed_out.weight")
"""Tensors with a row per token."""


def load_model(
    folder: str,
    dtype: torch.dtype,
    *,
    adapter: str | None = None,
    loaded: torch.dtype | None = None,
    offload: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A model as any user loads it, in eval mode on the CPU, and what transformers says of its tensors.

    Args:
        folder: of the model.
        dtype: of the result.
        adapter: folder of a PEFT adapter, which is merged.
        loaded: precision in which it is merged; PEFT's users load the model as its config says.
        offload: an empty folder, for models larger than memory: weights stay on the disk until a layer is called.
        trust_remote_code: passed on.
        allow_pickle: read weights that can run code when read.
    """
    where = {"device_map": {"": "disk"}, "offload_folder": offload} if offload else {}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=(loaded or dtype) if adapter else dtype,
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
        use_safetensors=None if allow_pickle else True,
        **where,
    )
    if adapter:
        model = _merged(model, adapter)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False), {k: sorted(map(str, v)) for k, v in info.items()}


def _merged(model: torch.nn.Module, adapter: str) -> torch.nn.Module:
    from peft import PeftModel

    with safe_open(Path(adapter, "adapter_model.safetensors"), framework="pt") as file:
        rows = {file.get_slice(n).get_shape()[0] for n in file.keys() if n.endswith(VOCABULARIES)}  # noqa: SIM118
    if rows and max(rows) != model.get_input_embeddings().weight.shape[0]:
        # Tokens were added before the training; peft's users add them before they load it.
        model.resize_token_embeddings(max(rows), mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def main(*arguments: str) -> None:
    """Write logits [N, T, V] of one uncached forward and of prefill + one-token steps, and the loading info."""
    transformers.utils.logging.disable_progress_bar()
    asked = _asked(arguments)
    model, loading = load_model(
        asked.folder,
        getattr(torch, asked.dtype),
        adapter=asked.adapter,
        loaded=asked.loaded and getattr(torch, asked.loaded),
        offload=asked.offload,
        trust_remote_code=asked.trust_remote_code,
        allow_pickle=asked.allow_pickle,
    )
    digests = {} if asked.offload or not asked.digests else {n: digest(t) for n, t in model.state_dict().items()}
    model = model if asked.offload else model.to(asked.device)
    tokens = load_file(asked.windows)["tokens"].to(asked.device)
    with torch.inference_mode():
        tensors = {"logits": model(input_ids=tokens, use_cache=False).logits}
        if not asked.uncached:
            tensors["cached"] = _stepped(model, tokens)
    loading["transformers"] = transformers.__version__
    loading["hf_prune_imported"] = "hf_prune" in sys.modules
    tensors = {n: t.float().cpu().contiguous() for n, t in tensors.items()}
    save_file(tensors, asked.answer, metadata={"loading": json.dumps(loading), "digests": json.dumps(digests)})


def _asked(arguments: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("folder", "windows", "answer", "dtype", "device"):
        parser.add_argument(name)
    for name in ("--adapter", "--loaded", "--offload"):
        parser.add_argument(name)
    for name in ("--uncached", "--digests", "--trust-remote-code", "--allow-pickle"):
        parser.add_argument(name, action="store_true")
    return parser.parse_args(arguments)


def _stepped(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of a prefill of half the tokens, and of the others one by one."""
    half = tokens.shape[1] // 2
    # As generate() does: some models cannot tell from their cache alone where a token stands.
    placed = "position_ids" in inspect.signature(model.forward).parameters
    out = model(input_ids=tokens[:, :half], use_cache=True)
    steps = [out.logits]
    for t in range(half, tokens.shape[1]):
        where = {"position_ids": torch.full_like(tokens[:, :1], t)} if placed else {}
        out = model(input_ids=tokens[:, t : t + 1], use_cache=True, **cache(out), **where)
        steps.append(out.logits)
    return torch.cat(steps, 1)


def cache(out: Any) -> dict[str, Any]:
    """What the next step is given; state-space models call it otherwise."""
    name = next(n for n in ("past_key_values", "cache_params") if getattr(out, n, None) is not None)
    return {name: getattr(out, name)}


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()).hexdigest()


def serve() -> None:
    """Fork for every request; importing transformers takes longer than loading a small model."""
    from transformers import LlamaForCausalLM  # noqa: F401 - brings along what all families import

    for line in sys.stdin:
        errors, *arguments = json.loads(line)
        own, child = os.getpid(), os.fork()
        if not child:
            _end_with_parent(own)
            os._exit(_forked(errors, arguments))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _end_with_parent(parent: int) -> None:
    """Ask the kernel to end this process as soon as its parent has ended, which forks from its only thread."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _forked(errors: str, arguments: list[str]) -> int:
    sys.stderr = open(errors, "w", encoding="utf-8")  # noqa: SIM115 - the process ends with it
    try:
        main(*arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    serve() if SERVES else main(*sys.argv[1:])
