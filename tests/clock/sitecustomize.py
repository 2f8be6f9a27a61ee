"""On PYTHONPATH: the day that the variable TODAY names, for every process that is started, in the modules that ask.

(Native libraries crash where `datetime.datetime` itself is another class.)
"""

import datetime
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence


class _Date(datetime.date):
    @classmethod
    def today(cls) -> "datetime.date":
        return datetime.date.fromisoformat(os.environ["TODAY"])


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "datetime.datetime":
        return datetime.datetime.combine(_Date.today(), datetime.datetime.min.time(), tz)


_CLOCKS = {
    "megatron_dpop.data.templates": types.SimpleNamespace(date=_Date, datetime=_Datetime),
    "transformers.utils.chat_template_utils": _Datetime,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds those modules as Python does, and gives them the clock once they are loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _CLOCKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def load(module: types.ModuleType) -> None:
            execute(module)
            module.datetime = _CLOCKS[name]  # type: ignore[attr-defined]

        spec.loader.exec_module = load  # type: ignore[method-assign]
        return spec


if "TODAY" in os.environ:
    sys.meta_path.insert(0, _Finder())
