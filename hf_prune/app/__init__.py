"""The app in the browser: pick, plan, run, compare, publish. `hf-prune ui` opens it here, space/ serves it as a Space.

Nothing of the pipeline is done again here: a form becomes a `Recipe`, a run is `compress`, what is shown are its events
and its report.
"""

from hf_prune.app.startup import quick

with quick():
    from hf_prune.app.layout import build, open_here

__all__ = ["build", "open_here"]
