"""`import hf_prune` makes transformers load models of several widths, without importing transformers itself."""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

AUTO = "transformers.models.auto.modeling_auto"
"""Once this is imported, model types can be registered; nobody loads a model by its type without it."""


def install() -> None:
    """Register now if that module is there, else as soon as it is."""
    if AUTO in sys.modules:
        _register()
    elif not any(isinstance(f, _Waiting) for f in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    # By name, since this module is below the one that it brings in, which registers when it is imported. While its own
    # part is being imported, somebody of ours is about to do that.
    part = sys.modules.get("hf_prune.models.modeling_pruned")
    if part is None or hasattr(part, "DONE"):
        importlib.import_module("hf_prune.models.auto_classes")


class _Waiting(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """A loader that registers behind the one it stands for."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        _register()
