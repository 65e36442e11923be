"""The seam to the Hub and to local folders: `peek` and `pull` a pinned source, `push` a finished folder.

The library's only user of huggingface_hub besides `card`.
"""

from hf_prune.hub.answers import watch_session
from hf_prune.hub.benchmarks import benchmark_result, benchmark_task
from hf_prune.hub.collections import collect
from hf_prune.hub.fetch import Peek, Pulled, fetch_report, fetch_result, peek, pull
from hf_prune.hub.folders import TensorInfo
from hf_prune.hub.jobs import Job, flavor, job_command, run_job
from hf_prune.hub.logins import forget_login
from hf_prune.hub.publish import PushResult, check_login, push
from hf_prune.hub.retries import LOGIN, has_answer
from hf_prune.hub.spaces import push_space
from hf_prune.hub.tree import Relative, relatives, search

__all__ = [
    "LOGIN", "Job", "Peek", "Pulled", "PushResult", "Relative", "TensorInfo", "benchmark_result", "benchmark_task",
    "check_login", "collect", "fetch_report", "fetch_result", "flavor", "forget_login", "has_answer", "job_command",
    "peek", "pull", "push", "push_space", "relatives", "run_job", "search", "watch_session",
]  # fmt: skip
