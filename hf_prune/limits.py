"""Numbers that a plan counts with and a run keeps to."""

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by the precision of the search."""
TOP_K = 512
"""Likeliest tokens of the dense model that are kept of each of its distributions."""
STATE_BYTES = 1 << 30
"""Most bytes of the states of all candidates between two layers. Fewer would stay in cache, but two threads then wait
for each other more often than that saves."""
EXAM_BYTES = 1 << 30
"""Most bytes of the dense model's states on tasks that are kept, beside what enters the first layer; the rest is
computed again."""
TILE_TOKENS = 2048
"""Tokens of one call of a layer on a CPU in 16 bits, half as many in 32: activations stay in cache, and every call has
one shape, whoever shares it."""
GPU_TILE_TOKENS = 1 << 15
"""The same on a GPU."""
CHUNK_TOKENS, GPU_CHUNK_TOKENS = 1024, 2048
"""Most tokens of a chunk of text, what a worker is given at a time: on a CPU in 16 bits, half as many in 32; on a GPU.
Evidence is cut by that however many workers there are, and a call of a layer takes no part of two chunks, so that all
numbers of workers give the same bits."""
HEAD_FLOATS, GPU_HEAD_FLOATS = 1 << 20, 1 << 28
"""Logits of one call of the head, on a CPU and on a GPU: as many as stay in cache, and 1 GiB."""
MERGED_LAYERS = 64
"""Merged layers that are kept beside the base unless told otherwise."""
FINAL_STAGES = 3
"""Rounds of training-aware selection: each trains twice as long as the one before, and half of the finalists go on."""
DEFAULT_RATIO = 0.25
"""Share of all parameters to remove where nothing else is asked."""
