"""Tell diffusers that `pqdiff` is a library whose models it can load, without importing diffusers.

diffusers loads and saves a component of another library under its short public name, `["pqdiff", "AutoencoderPQ"]`, only if
the library is in its table `LOADABLE_CLASSES`. With the entry, stock pipelines load our autoencoders from a folder and by
Hub repo id, and the files of this package may move. The table is not a documented API of diffusers, and this is the only
file that writes to it.

`import pqdiff` must stay fast, so it must not import diffusers only to write one entry. If the module with the table is
loaded already, it gets the entry at once. If not, a finder in `sys.meta_path` waits for it. Python asks the finders there
whenever it imports a module. This finder waits for that one module, lets the usual finders do the work, writes the entry
when the module has been executed, and removes itself.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "diffusers.pipelines.pipeline_loading_utils"


def register_with_diffusers() -> None:
    """Write the entry now if diffusers' loader is imported already, otherwise as soon as it is imported."""
    if _MODULE in sys.modules:
        _write_entry(importlib.import_module(_MODULE))  # waits if another thread is still importing it
    elif not any(isinstance(finder, _RegisterOnImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterOnImport())


def _write_entry(module: ModuleType) -> None:
    # diffusers then looks for `ModelMixin` in the namespace of `pqdiff`, and calls these two methods of its subclasses.
    module.LOADABLE_CLASSES["pqdiff"] = {"ModelMixin": ["save_pretrained", "from_pretrained"]}


class _RegisterOnImport:
    """A finder for one module, which it finds by asking the other finders."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name != _MODULE:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _write_entry(module)
                if self in sys.meta_path:  # still there if the import has failed, because it may be tried again
                    sys.meta_path.remove(self)

            spec.loader.exec_module = execute_and_register  # of this spec alone: every spec has a loader of its own
        return spec
