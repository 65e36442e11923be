"""Run by path in a fresh process: loads a saved model with stock transformers and says what it computes.

Imports nothing of hf_prune, so that a pass means that users without it get the same model.
Usage: reload_probe.py FOLDER WINDOWS.safetensors ANSWER.safetensors DTYPE DEVICE [--trust-remote-code]
       reload_probe.py --serve    the same for every line of stdin (JSON: a file for stderr, then the arguments), in
                                  forks of a process that has imported transformers and nothing else; prints exit codes
"""

import inspect
import json
import os
import sys
import traceback
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: str, windows: str, answer: str, dtype: str, device: str, *flags: str) -> None:
    """Write logits [N, T, V] of one uncached forward and of prefill + one-token steps, and the loading info."""
    transformers.utils.logging.disable_progress_bar()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code="--trust-remote-code" in flags,
    )
    model.eval().to(device)
    tokens = load_file(windows)["tokens"].to(device)
    half = tokens.shape[1] // 2
    # As generate() does: some models cannot tell from their cache alone where a token stands.
    placed = "position_ids" in inspect.signature(model.forward).parameters
    with torch.inference_mode():
        whole = model(input_ids=tokens, use_cache=False).logits
        out = model(input_ids=tokens[:, :half], use_cache=True)
        steps = [out.logits]
        for t in range(half, tokens.shape[1]):
            where = {"position_ids": torch.full_like(tokens[:, :1], t)} if placed else {}
            out = model(input_ids=tokens[:, t : t + 1], use_cache=True, **cache(out), **where)
            steps.append(out.logits)
    loading = {k: sorted(map(str, v)) for k, v in info.items()}
    loading["transformers"] = transformers.__version__
    loading["hf_prune_imported"] = "hf_prune" in sys.modules
    tensors = {"logits": whole.float().cpu(), "cached": torch.cat(steps, 1).float().cpu()}
    save_file(tensors, answer, metadata={"loading": json.dumps(loading)})


def cache(out: Any) -> dict[str, Any]:
    """What the next step is given; state-space models call it otherwise."""
    name = next(n for n in ("past_key_values", "cache_params") if getattr(out, n, None) is not None)
    return {name: getattr(out, name)}


def serve() -> None:
    """Fork for every request; importing transformers takes longer than loading a small model."""
    from transformers import LlamaForCausalLM  # noqa: F401 - brings along what all families import

    for line in sys.stdin:
        errors, *arguments = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(_forked(errors, arguments))
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


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
    serve() if sys.argv[1:] == ["--serve"] else main(*sys.argv[1:])
