"""Children of MMEngine's registries.

A config names a class of this package as ``type='grootv.GrootV'``, whatever its default scope is:
MMEngine imports this file by the scope's name, then the package the class lives in.
"""

from mmengine import registry as root

MODELS = root.Registry('model', parent=root.MODELS, locations=['grootv.models', 'grootv.models.heads'])
TRANSFORMS = root.Registry('transform', parent=root.TRANSFORMS, locations=['grootv.datasets'])
HOOKS = root.Registry('hook', parent=root.HOOKS, locations=['grootv.engine'])
OPTIM_WRAPPERS = root.Registry('optim_wrapper', parent=root.OPTIM_WRAPPERS, locations=['grootv.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = root.Registry(
    'optimizer wrapper constructor', parent=root.OPTIM_WRAPPER_CONSTRUCTORS, locations=['grootv.engine']
)
STRATEGIES = root.Registry('strategy', parent=root.STRATEGIES, locations=['grootv.engine.sharding'])
# Imported only when a config asks for it: this one needs mmdet.
DATASETS = root.Registry('dataset', parent=root.DATASETS, locations=['grootv.datasets.coco'])
