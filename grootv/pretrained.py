"""The files that the ``init_cfg`` of a model's parts load."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.model.weight_init import PretrainedInit


def initialisations(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every dict below ``node`` that has an ``init_cfg``, and its dotted key."""
    if isinstance(node, Mapping):
        if node.get('init_cfg'):
            yield key, node
        for name, value in node.items():
            yield from initialisations(value, f'{key}.{name}')
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from initialisations(value, f'{key}.{index}')


def members(init_cfg: Any) -> dict[str, Mapping]:
    """The dicts of an ``init_cfg``, which is one or a list, by the end of their dotted keys."""
    if isinstance(init_cfg, list):
        return {f'.{index}': init for index, init in enumerate(init_cfg)}
    return {'': init_cfg} if init_cfg else {}


def is_pretrained(init: Any) -> bool:
    return isinstance(init, Mapping) and init.get('type') in ('Pretrained', PretrainedInit)


def drop_pretrained(cfg: Config) -> None:
    """Remove the files of ``init_cfg`` from a config whose weights all come from a checkpoint."""
    for _, node in initialisations(cfg.get('model'), 'model'):
        others = [init for init in members(node['init_cfg']).values() if not is_pretrained(init)]
        node['init_cfg'] = others or None
