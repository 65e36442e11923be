"""The Space: the same app as `hf-prune ui`, for visitors."""

import os
from pathlib import Path

from hf_prune.app import open_here

if __name__ == "__main__":
    open_here(Path(os.environ.get("HF_PRUNE_RUNS", "runs")), port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")))
