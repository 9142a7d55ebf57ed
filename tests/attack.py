"""Attack the operators, the readers of files and the resumption of a training, for as long as one likes.

    python -m tests.attack --seconds 60

Operators get valid arguments of which some are spoiled; files are mangled by bytes and by values; a training
is killed at random moments and continued. The script fails, and names the seed to repeat, if a process
crashes or takes 8 GiB, an error is of another kind than promised, or a killed run ends unlike another one.
"""

import argparse
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import torch
from mmengine.registry import init_default_scope
from PIL import Image
from torch.utils._pytree import tree_leaves

from grootv import ops
from grootv.checkpoint import load_checkpoint_file, load_weights
from grootv.cli import load_config
from grootv.datasets import CocoDataset, CocoMetric, LoadImageFromFile
from grootv.errors import UserError
from grootv.ops.grid_graph import grid_edges
from tests.data.test_coco import CLASSES, MASKS, content
from tests.tools.tiny_run import ROOT, write_config, write_images

NOTE = Path(tempfile.gettempdir(), 'grootv_attack')  # seed of the attack that goes on
INTEGERS = (-1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, -(2**63))
JUNK = [None, True, -1, 10**30, 1e308, math.nan, math.inf, '', 'x' * 999, [], {}, [[]], [1, 2, 3], {'a': 1}]
FLOATS, OTHERS = (math.nan, math.inf, 3e38, 1e-45), ('x', '', 'cosine', None, math.nan, 0.0, 1e308)
DTYPES = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool)


def valid_calls(rng: random.Random) -> dict[str, list]:
    b, h, w, c = rng.randint(0, 2), rng.randint(1, 9), rng.randint(1, 9), rng.choice((1, 2, 16, 33))
    maps, edges, n, size = torch.randn(b, h, w, c), grid_edges(h, w), rng.choice((1, 2, 16)), h * w
    chosen = ops.minimum_spanning_tree(weight := ops.grid_edge_weight(maps), h, w)
    first, last = (torch.ops.grootv.breadth_first_order(chosen, h, w, root) for root in (0, size - 1))
    x, one, norm = maps.flatten(1, 2), torch.randn(b, size), torch.ones(c)
    return {
        'grid_edge_weight': [maps, 'cosine'],
        'build_tree': [maps, 'euclidean', 0],
        'tree_edge_distance': [x, *first, 'manhattan'],
        'minimum_spanning_tree': [weight, h, w],
        'minimum_spanning_tree_from_edges': [edges.expand(b, -1, -1), weight, size, True],
        'breadth_first_order': [chosen, h, w, 0],
        'breadth_first_order_from_edges': [edges.expand(b, -1, -1), chosen, size, 0, True],
        'heavy_light': [*first, 'tree_scan'],
        'tree_scan': [x, x.sigmoid(), *first, 'both'],
        'selective_tree_scan': [x, x, -norm, one, norm, one.abs(), norm, *first, True],
        'token_edge_weight': [x, one[..., None], torch.zeros(b, 2, dtype=torch.int64), 2],
        'token_scan': [x, x, -torch.rand(c, n), *torch.randn(2, b, size, n), norm, *last, True],
        'gated_read_out': [x, one, x, norm, x, norm, norm, norm, norm, 1e-5],
    }


def spoiled(value: object, rng: random.Random) -> object:
    if not isinstance(value, torch.Tensor):
        return rng.choice(INTEGERS if isinstance(value, int) else OTHERS)
    changes = [
        lambda t: t.to(rng.choice(DTYPES)),
        lambda t: t.unsqueeze(rng.randint(0, t.dim())),
        lambda t: torch.cat([t, t], rng.randrange(t.dim()))[..., :-1],
        lambda t: t[:1].expand(rng.choice((0, 1, 3)), *t.shape[1:]),
        lambda t: t.to('meta'),
        lambda t: torch.full_like(
            t.transpose(0, -1), rng.choice(FLOATS if t.is_floating_point() else INTEGERS[:6])
        ),
        lambda t: torch.randint_like(t, -3, 99),
        lambda t: t.clone().requires_grad_(),
    ]
    return rng.choice(changes)(value)


def operators(rng: random.Random) -> str:
    name, arguments = rng.choice([*valid_calls(rng).items()])
    for place in rng.sample(range(len(arguments)), rng.choice((0, 1, 1, 2))):
        with suppress(RuntimeError, IndexError):  # torch refuses to spoil it
            arguments[place] = spoiled(arguments[place], rng)
    try:
        results = tree_leaves(getattr(torch.ops.grootv, name)(*arguments))
        for result in (result for result in results if result.requires_grad):
            result.sum().backward(retain_graph=True)
        return f'calls of {name} accepted'
    except (RuntimeError, ValueError, TypeError) as error:
        assert 'INTERNAL' not in str(error) and 'API call' not in str(error), error
        return f'calls of {name} refused'


def changed(value: object, rng: random.Random, junk: list) -> object:
    """A copy of nested dicts and lists with one value replaced."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.15:
        return rng.choice(junk)
    copy = value.copy()
    place = rng.choice([*copy] if isinstance(copy, dict) else range(len(copy)))
    copy[place] = changed(copy[place], rng, junk)
    return copy


def mangled(data: bytes, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 3, 30))):
        start, length = rng.randrange(len(data) + 1), rng.choice((1, 4, 50))
        kinds = rng.randbytes(length) + data[start + length :], data[start - 50 :], b''
        data = data[:start] + rng.choices(kinds, (6, 2, 1))[0]
    return data


def files(rng: random.Random) -> str:
    init_default_scope('mmdet')
    kind, model = rng.choice(('checkpoint', 'annotations', 'image', 'config')), torch.nn.Linear(2, 1)
    by_value = rng.random() < 0.6
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f'file{".yml" if kind == "config" else ""}')
        if kind == 'checkpoint':
            saved = dict(state_dict=dict(model.state_dict()), meta=dict(epoch=1), message_hub={})
            torch.save(changed(saved, rng, [*JUNK, torch.ones(3)]) if by_value else saved, path)
        elif kind == 'image':
            Image.effect_noise((40, 30), 80).save(path, rng.choice(('png', 'jpeg', 'webp', 'tiff', 'gif')))
        else:
            value = content() if kind == 'annotations' else dict(model=dict(layers=[1, 2]))
            path.write_text(json.dumps(changed(value, rng, JUNK) if by_value else value))
        if not by_value or kind == 'image':
            path.write_bytes(mangled(path.read_bytes(), rng))
        try:
            if kind == 'checkpoint':
                load_weights(model, path)
            elif kind == 'image':
                LoadImageFromFile()(dict(img_path=str(path)))
            elif kind == 'config':
                load_config(path)
            else:
                CocoDataset(str(path), dict(classes=CLASSES), data_prefix=dict(img=''), **MASKS)
                CocoMetric(str(path), metric=['bbox', 'segm'])
            return f'files, {kind} read'
        except UserError as error:
            return f'files, {kind} refused' if '\n' not in str(error) else sys.exit(str(error))


def outcome(folder: Path) -> tuple[list[float], list[str]]:
    state = load_checkpoint_file(folder / 'epoch_4.pth')['state_dict']
    names = [path.name for path in folder.iterdir() if 'best' in path.name or path.suffix == '.tmp']
    return [value.double().sum().item() for value in state.values()], sorted(names)


def kills(rng: random.Random) -> str:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        config = write_config(root, write_images(root / 'images'))

        def train(name: str, kill: bool) -> None:
            command = [sys.executable, 'tools/train.py', config, '--work-dir', root / name, '--resume']
            command += ['--cfg-options', 'train_cfg.max_epochs=4', 'train_dataloader.num_workers=0']
            with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
                for line in run.stdout or ():
                    if kill and 'Epoch(train)' in line:
                        time.sleep(2 * rng.random())
                        run.kill()
                assert kill or run.wait() == 0, line

        train('undisturbed', kill=False)
        for kill in (True, True, False):
            train('killed', kill)
        assert outcome(root / 'killed') == outcome(root / 'undisturbed')
    return 'trainings ended like undisturbed ones after two kills'


PARTS = dict(operators=operators, files=files, kills=kills)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=60, help='of all parts; kills take half of a minute')
    parser.add_argument('--seed', type=int, default=random.randrange(10**6))
    parser.add_argument('--part', choices=PARTS, help='this one alone, in this process')
    args = parser.parse_args()
    for part in () if args.part else PARTS:
        options = ['--part', part, '--seed', str(args.seed), '--seconds', str(args.seconds / len(PARTS))]
        if subprocess.run([sys.executable, '-m', 'tests.attack', *options], cwd=ROOT).returncode:
            sys.exit(f'the attack succeeded: python -m tests.attack --part {part} --seed {NOTE.read_text()}')
    if args.part != 'kills':  # threads of its processes take address space
        resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    found: Counter[str] = Counter()
    end, seed = time.monotonic() + args.seconds, args.seed
    while args.part and (not found or time.monotonic() < end):
        NOTE.write_text(str(seed))
        found[PARTS[args.part](random.Random(seed))] += 1
        seed += 1
    print('\n'.join(f'{count:7,} {text}' for text, count in sorted(found.items())), flush=True)


if __name__ == '__main__':
    main()
