"""Strip a trained checkpoint to its weights, and write them with a model card into a folder.

python tools/model_converters/publish_model.py CONFIG CHECKPOINT FOLDER [--format safetensors]

The file is named after the config and ends in the first eight digits of its SHA-256. Weights are those that
the run validates with: averaged ones, where it averages.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grootv import checks, cli
from grootv.checkpoint import build_model, load_checkpoint_file, pack_weights
from grootv.errors import UserError
from grootv.files import write_atomically

CARD = """---
license: apache-2.0
tags: [{tags}]
---

# {name}

| | |
|:---|:---|
| config | `{config}` |
| file | `{file}`, {size:.1f} MB |
| SHA-256 | `{sha256}` |
{rows}
Load it with [grootv](https://arxiv.org/abs/2406.02395), without running code from the file:

```python
from grootv.checkpoint import build_model

model = build_model('{config}', '{file}')
```
"""


def facts(model: Any, meta: Mapping[str, Any], runtime: Mapping[str, Any]) -> dict[str, str]:
    """What the card says of the network and its training."""
    found = {'parameters': f'{sum(p.numel() for p in model.parameters()):,}'}
    classes = (meta.get('dataset_meta') or {}).get('classes') or ()
    if classes:
        shown = ', '.join(map(str, classes[:10])) + (', …' if len(classes) > 10 else '')
        found['classes'] = f'{len(classes)}: {shown}'
    if 'epoch' in meta and 'iter' in meta:
        found['trained'] = f'{meta["epoch"]} epochs, {meta["iter"]} iterations'
    scores = {name: value for name, value in runtime.items() if name.startswith('best_score')}
    for name, score in scores.items():
        metric = name.removeprefix('best_score').lstrip('_') or 'the metric of save_best'
        found[f'best {metric} of the run'] = f'{float(score):.4g}'
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('folder', type=Path, help='folder to write into')
    parser.add_argument('--format', choices=['pth', 'safetensors'], default='pth', help='default pth')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    if args.folder.is_file():
        raise UserError(f'{args.folder} is a file: give a folder')
    checks.check_checkpoint(args.checkpoint)
    checkpoint = load_checkpoint_file(args.checkpoint, args.trust_checkpoint)
    model = build_model(cfg, args.checkpoint, args.trust_checkpoint)
    meta = checkpoint.get('meta') or {}
    kept = {'dataset_meta': meta['dataset_meta']} if meta.get('dataset_meta') else {}
    content = pack_weights(model.state_dict(), kept, args.format)
    name, sha256 = Path(args.config).stem, hashlib.sha256(content).hexdigest()
    path = args.folder / f'{name}-{sha256[:8]}.{args.format}'
    with write_atomically(path) as draft:
        draft.write_bytes(content)
    runtime = (checkpoint.get('message_hub') or {}).get('runtime_info') or {}
    rows = ''.join(f'| {key} | {value} |\n' for key, value in facts(model, meta, runtime).items())
    tags = f'grootv, {cfg.get("default_scope", "mmpretrain")}'
    card = CARD.format(
        tags=tags,
        name=name,
        config=args.config,
        file=path.name,
        size=len(content) / 1e6,
        sha256=sha256,
        rows=rows,
    )
    with write_atomically(args.folder / 'README.md') as draft:
        draft.write_text(card)
    print(f'wrote {path} and {args.folder / "README.md"}')


if __name__ == '__main__':
    cli.run(main)
