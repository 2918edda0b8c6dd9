"""Unlearn by merging an over-forgetting and an under-forgetting adapter.

The public Python API. Each function has the name and the defaults of the command that calls it::

    import mergeforget as mf

    result = mf.unlearn("model", forget="forget.jsonl", retain="retain.jsonl")
    merged = mf.merge(["runs/a/over", "runs/a/under"], method="ties", density=0.7)
    merged.save("merged")
    scores = mf.evaluate("model", adapter="merged", forget="forget.jsonl", retain="retain.jsonl")
    scores.to_pandas()

Names are loaded at their first use, so importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_MODULES = {  # public name -> the module that defines it
    "analyze": "mergeforget.api.runs",
    "attack": "mergeforget.api.attacking",
    "available": "mergeforget.api.catalog",
    "check_data": "mergeforget.api.data",
    "compare": "mergeforget.api.runs",
    "convert_data": "mergeforget.api.data",
    "copy_recipe": "mergeforget.api.catalog",
    "doctor": "mergeforget.api.doctor",
    "evaluate": "mergeforget.api.measuring",
    "explain_recipe": "mergeforget.api.catalog",
    "export": "mergeforget.api.runs",
    "extract_lora": "mergeforget.api.merging",
    "load_adapter": "mergeforget.api.merging",
    "load_run": "mergeforget.api.runs",
    "open_chat": "mergeforget.api.runs",
    "make_data": "mergeforget.api.data",
    "merge": "mergeforget.api.merging",
    "merge_full": "mergeforget.api.merging",
    "merge_models": "mergeforget.api.merging",
    "mergekit_config": "mergeforget.api.merging",
    "plan": "mergeforget.api.training",
    "read_data": "mergeforget.api.data",
    "report": "mergeforget.api.runs",
    "score": "mergeforget.api.runs",
    "search": "mergeforget.api.searching",
    "train": "mergeforget.api.training",
    "train_pair": "mergeforget.api.training",
    "unlearn": "mergeforget.api.unlearn",
    "unlearn_sequence": "mergeforget.api.sequence",
    "verify": "mergeforget.api.runs",
    "MergeforgetError": "mergeforget.errors",
}

if TYPE_CHECKING:
    from mergeforget.api.attacking import attack as attack
    from mergeforget.api.catalog import available as available
    from mergeforget.api.catalog import copy_recipe as copy_recipe
    from mergeforget.api.catalog import explain_recipe as explain_recipe
    from mergeforget.api.data import check_data as check_data
    from mergeforget.api.data import convert_data as convert_data
    from mergeforget.api.data import make_data as make_data
    from mergeforget.api.data import read_data as read_data
    from mergeforget.api.doctor import doctor as doctor
    from mergeforget.api.measuring import evaluate as evaluate
    from mergeforget.api.merging import extract_lora as extract_lora
    from mergeforget.api.merging import load_adapter as load_adapter
    from mergeforget.api.merging import merge as merge
    from mergeforget.api.merging import merge_full as merge_full
    from mergeforget.api.merging import merge_models as merge_models
    from mergeforget.api.merging import mergekit_config as mergekit_config
    from mergeforget.api.runs import analyze as analyze
    from mergeforget.api.runs import compare as compare
    from mergeforget.api.runs import export as export
    from mergeforget.api.runs import load_run as load_run
    from mergeforget.api.runs import open_chat as open_chat
    from mergeforget.api.runs import report as report
    from mergeforget.api.runs import score as score
    from mergeforget.api.runs import verify as verify
    from mergeforget.api.searching import search as search
    from mergeforget.api.sequence import unlearn_sequence as unlearn_sequence
    from mergeforget.api.training import plan as plan
    from mergeforget.api.training import train as train
    from mergeforget.api.training import train_pair as train_pair
    from mergeforget.api.unlearn import unlearn as unlearn
    from mergeforget.errors import MergeforgetError as MergeforgetError

__all__ = ["__version__", *sorted(_MODULES)]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__


class _CallableModule(ModuleType):
    """A subpackage such as ``mergeforget.merge`` that can be called as the function of its name.

    Python binds a subpackage to its parent once it is imported. Without this class ``mf.merge(..)``
    would work only until something imports ``mergeforget.merge.engine``.
    """

    def __call__(self, *args: Any, **options: Any) -> Any:
        return _function_of(self)(*args, **options)

    @property
    def __signature__(self) -> Any:
        import inspect

        return inspect.signature(_function_of(self))


def _function_of(module: ModuleType) -> Any:
    return __getattr__(module.__name__.rpartition(".")[2])


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and type(value) is ModuleType:
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
