"""A program of its own that asks a llama.cpp: a library that fails ends this process, and no other.

Reads a question as JSON on stdin: `library` (path of libllama), and of these what is wanted: `quantize` (from, to,
type), `model` (a GGUF file) with `texts` (to be tokenized), `windows` (an .npy file of int32 [N, T], whose logits go to
the .npy file `logits` as float32 [N, T, V]) and `spoken` (so many tokens behind the first window). Answers in JSON on
stdout.

Parameters are structs that grow from release to release. They are handed on as the library fills them, and the few that
matter are found by the defaults around them, which stand as they do since 2024.
"""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOM = 1024
"""Bytes kept for a struct of parameters; a larger one than the library knows is read from its beginning."""
PLAIN_KV = np.array([-1, -1, -1, -1, 0, 0], "<f4").tobytes()
"""Of a context: four settings of YaRN, its length and, before callbacks, when to defragment; without the last -1."""


THREADS = max(1, (os.cpu_count() or 1) // 2)
"""They spin while they wait, which on shared cores takes longer than one alone."""


class Opaque(ctypes.Structure):
    """A struct of parameters."""

    _fields_ = [("raw", ctypes.c_uint64 * (ROOM // 8))]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "llama_model_default_params": (Opaque,),
    "llama_context_default_params": (Opaque,),
    "llama_model_quantize_default_params": (Opaque,),
    "llama_model_quantize": (ctypes.c_uint32, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p),
    "llama_model_load_from_file": (ctypes.c_void_p, ctypes.c_char_p, Opaque),
    "llama_init_from_model": (ctypes.c_void_p, ctypes.c_void_p, Opaque),
    "llama_model_get_vocab": (ctypes.c_void_p, ctypes.c_void_p),
    "llama_vocab_n_tokens": (ctypes.c_int32, ctypes.c_void_p),
    "llama_set_n_threads": (None, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32),
    "llama_tokenize": (ctypes.c_int32, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_void_p,
                       ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    "llama_decode": (ctypes.c_int32, ctypes.c_void_p, Batch),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), ctypes.c_void_p, ctypes.c_int32),
    "llama_free": (None, ctypes.c_void_p),
}  # fmt: skip


def opened(path: Path) -> ctypes.CDLL:
    """The library, with the backends that lie beside it."""
    for name in ("ggml-base", "ggml"):
        for beside in sorted(path.parent.glob(f"*{name}.*")):
            if beside.suffix in (".so", ".dylib", ".dll"):
                ggml = ctypes.CDLL(str(beside), mode=ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    if hasattr(ggml, "ggml_backend_load_all_from_path"):
        ggml.ggml_backend_load_all_from_path(str(path.parent).encode())
    return library


def put(parameters: Opaque, at: int, *values: int) -> None:
    """Set 32-bit numbers from a byte on."""
    raw = np.frombuffer(parameters, np.uint8)
    raw[at : at + 4 * len(values)] = np.array(values, "<i4").view(np.uint8)


def context(library: ctypes.CDLL, model: int, length: int) -> int:
    """A context of so many tokens whose keys and values are float32."""
    parameters = library.llama_context_default_params()
    raw = bytes(parameters)
    sizes = np.frombuffer(raw, "<u4", 3).tolist()
    # defrag_thold, two null pointers, and the types of keys and values: both F16.
    cache = raw.find(np.array([-1], "<f4").tobytes() + bytes(16) + np.array([1, 1], "<i4").tobytes())
    if cache < 0:
        cache = raw.find(np.array([-1], "<f4").tobytes() + bytes(20) + np.array([1, 1], "<i4").tobytes()) + 4
    if sizes != [512, 2048, 512] or cache < 4:
        raise SystemExit("this llama.cpp fills its settings in an unknown way; take a release of 2025 or later")
    put(parameters, 0, length, length, length)
    put(parameters, cache + 20, 0, 0)
    # Four settings of YaRN stand before; in front of them two of RoPE, and there when to use flash attention.
    flash = raw.find(np.array([-1, -1, -1, -1], "<i4").tobytes() + bytes(8) + PLAIN_KV[:16])
    if flash >= 0:
        put(parameters, flash + 12, 0)
    made = library.llama_init_from_model(model, parameters)
    if not made:
        raise SystemExit("it makes no context for this file")
    library.llama_set_n_threads(made, THREADS, THREADS)
    return made


def logits(library: ctypes.CDLL, made: int, tokens: list[int], size: int) -> np.ndarray:
    """[T, V] of one window."""
    n = len(tokens)
    number = ctypes.c_int32 * n
    first = ctypes.c_int32(0)
    batch = Batch(
        n,
        number(*tokens),
        None,
        number(*range(n)),
        number(*[1] * n),
        (ctypes.POINTER(ctypes.c_int32) * n)(*[ctypes.pointer(first)] * n),
        (ctypes.c_int8 * n)(*[1] * n),
    )
    if code := library.llama_decode(made, batch):
        raise SystemExit(f"it does not compute this file (llama_decode says {code})")
    return np.stack([np.ctypeslib.as_array(library.llama_get_logits_ith(made, i), (size,)).copy() for i in range(n)])


def computed(library: ctypes.CDLL, model: int, tokens: list[int], size: int) -> np.ndarray:
    """The same in a context of its own."""
    made = context(library, model, max(64, -(-len(tokens) // 64) * 64))
    found = logits(library, made, tokens, size)
    library.llama_free(made)
    return found


def tokenized(library: ctypes.CDLL, vocabulary: int, text: str) -> list[int]:
    """Ids of a text with special tokens written out, and those that the file says come first and last."""
    raw = text.encode("utf-8")
    room = (ctypes.c_int32 * (len(raw) + 8))()
    count = library.llama_tokenize(vocabulary, raw, len(raw), room, len(room), True, True)
    return list(room[:count])


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What was asked."""
    library = opened(Path(question["library"]))
    if "quantize" in question:
        source, target, kind = question["quantize"]
        parameters = library.llama_model_quantize_default_params()
        put(parameters, 0, 2, kind)
        if library.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)):
            raise SystemExit("it does not quantize this file")
    said: dict[str, Any] = {}
    if "model" not in question:
        return said
    model = library.llama_model_load_from_file(question["model"].encode(), library.llama_model_default_params())
    if not model:
        raise SystemExit("it does not load this file")
    vocabulary = library.llama_model_get_vocab(model)
    said["tokens"] = [tokenized(library, vocabulary, text) for text in question.get("texts", ())]
    size = library.llama_vocab_n_tokens(vocabulary)
    if "windows" in question:
        windows = np.load(question["windows"]).tolist()
        np.save(question["logits"], np.stack([computed(library, model, w, size) for w in windows]))
        said["spoken"] = spoken = []
        for _ in range(question.get("spoken", 0)):
            spoken.append(int(computed(library, model, [*windows[0], *spoken], size)[-1].argmax()))
    return said


if __name__ == "__main__":
    # What a library writes there is no answer.
    asked, out = json.load(sys.stdin), sys.stdout
    json.dump(answer(asked), out)
