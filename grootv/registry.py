"""Children of MMEngine's registries.

A config names a class of this package as ``type='grootv.GrootV'``, whatever its default scope is:
MMEngine imports this file by the scope's name, then the package the class lives in.

The classes of the language task are imported by its configs (``custom_imports``), because they need
packages that the others do not, and the other way round.
"""

from importlib import import_module
from typing import Any

from mmengine import registry as root


def class_name(kind: Any) -> str:
    """The name, without scope, of a config's ``type``, which is a class in Python-style configs."""
    return str(getattr(kind, '__name__', kind)).rpartition('.')[2]


class Registry(root.Registry):
    """MMEngine's registry, which imports of its locations only what is asked for."""

    def get(self, key: str) -> type | None:
        scope, name = self.split_scope_key(key)
        if scope in (None, self.scope):
            for location in () if name in self._module_dict else self._locations:
                getattr(import_module(location), name, None)  # a package may import a part of it by this
            if name in self._module_dict:
                return self._module_dict[name]
        return super().get(key)


MODELS = Registry('model', parent=root.MODELS, locations=['grootv.models.backbones', 'grootv.models.heads'])
TRANSFORMS = Registry('transform', parent=root.TRANSFORMS, locations=['grootv.datasets'])
HOOKS = Registry('hook', parent=root.HOOKS, locations=['grootv.engine'])
OPTIM_WRAPPERS = Registry('optim_wrapper', parent=root.OPTIM_WRAPPERS, locations=['grootv.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', parent=root.OPTIM_WRAPPER_CONSTRUCTORS, locations=['grootv.engine']
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler', parent=root.PARAM_SCHEDULERS, locations=['grootv.engine.schedulers']
)
STRATEGIES = Registry('strategy', parent=root.STRATEGIES, locations=['grootv.engine.sharding'])
DATASETS = Registry('dataset', parent=root.DATASETS, locations=['grootv.datasets'])
FUNCTIONS = Registry('function', parent=root.FUNCTIONS)
METRICS = Registry('metric', parent=root.METRICS, locations=['grootv.datasets'])
