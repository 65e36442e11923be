"""gradio in half the time: the first page waits for its import more than for anything else."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from pydantic import BaseModel

FOR_EDITORS = {
    # Type stubs of all components, parsed and rendered anew at every start although the package brings them.
    "gradio.component_meta": ("", "create_or_modify_pyi"),
    # Docstrings of all events of all components, rendered from templates.
    "gradio.events": ("EventListener", "set_doc"),
}
"""What gradio does while it is imported and no app has a use for: module, class in it if any, function."""


class WithoutDocs(MetaPathFinder):
    """Imports gradio without what it does for editors. A gradio that does not do so is left as it is."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The module's own spec; the function is taken away as soon as it is executed."""
        spec = PathFinder.find_spec(name, path, target) if name in FOR_EDITORS else None
        if spec is None or spec.loader is None:
            return None
        execute, (place, function) = spec.loader.exec_module, FOR_EDITORS[name]

        def exec_module(module: ModuleType) -> None:
            execute(module)
            owner = getattr(module, place, None) if place else module
            if hasattr(owner, function):
                setattr(owner, function, lambda *_, **__: None)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


@contextmanager
def quick() -> Iterator[None]:
    """For what makes many objects and no garbage: no collections on the way, and validators when one is first asked."""
    finder, collecting, config = WithoutDocs(), gc.isenabled(), BaseModel.model_config
    sys.meta_path.insert(0, finder)
    gc.disable()
    # Of the hundreds of models of fastapi and mcp an app asks a few.
    BaseModel.model_config = {**config, "defer_build": True}
    try:
        yield
    finally:
        BaseModel.model_config = config
        sys.meta_path.remove(finder)
        # What was made lives as long as the process: no later collection need look at it.
        gc.freeze()
        if collecting:
            gc.enable()


@contextmanager
def unserved(app: type) -> Iterator[None]:
    """While an app is laid out: gradio makes a server whenever it may be complete, and launching makes the one that
    serves.

    Args:
        app: gradio's App.
    """
    create = app.__dict__["create_app"]
    app.create_app = staticmethod(lambda *_, **__: None)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        app.create_app = create  # type: ignore[attr-defined]
