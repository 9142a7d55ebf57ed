"""Export a config's classifier, or the backbone of its detector or segmentor, to ONNX.

    python tools/deployment/torch2onnx.py CONFIG [CHECKPOINT] --out model.onnx --verify

The model takes images (B, 3, H, W) of any size, normalised as its metadata say, and gives the logits of a
classifier, or the maps of a backbone. Trees and scans are operators of the domain grootv: docs/deployment.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grootv import cli, ops
from grootv.checkpoint import load_checkpoint_file
from grootv.errors import UserError
from grootv.export import Logits, compare, deployable, difference, export_onnx, random_images
from grootv.files import write_named
from grootv.registry import DATASETS

TOLERANCE = 1e-3  # of the greatest value: rounding stays far below, one wrong edge of a tree far above


def normalisation(cfg: Config) -> dict[str, str]:
    """What the config does to an image before the network, as metadata: mean, std and order of channels."""
    steps = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    rgb = steps.get('to_rgb') or steps.get('bgr_to_rgb')
    found = {name: ' '.join(map(str, steps[name])) for name in ('mean', 'std') if steps.get(name)}
    return {**found, 'channels': 'RGB' if rgb else 'BGR'}


def class_names(cfg: Config, checkpoint: str | None = None, trust: bool = False) -> Sequence[str]:
    """Names of classes by label: those the checkpoint was trained with, or else of the config's data."""
    meta = load_checkpoint_file(checkpoint, trust).get('meta') if checkpoint else None
    trained = meta.get('dataset_meta') if isinstance(meta, Mapping) else None
    if trained and trained.get('classes'):
        return trained['classes']
    for loader in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        data = (cfg.get(loader) or {}).get('dataset') or {}
        while 'dataset' in data:  # of a wrapper
            data = data['dataset']
        own = getattr(DATASETS.get(data['type']), 'METAINFO', {}) if 'type' in data else {}
        names = (data.get('metainfo') or {}).get('classes') or data.get('classes') or own.get('classes')
        if names:
            return Path(names).read_text().splitlines() if isinstance(names, str) else names
    return ()


class GivenTrees(TorchDispatchMode):
    """Makes a network scan along trees from elsewhere, if each is the one that its map calls for.

    Args:
        trees: For each call of build_tree, in order: the map, and the tree that was built from it.
    """

    def __init__(self, trees: Iterator[list[Tensor]]):
        super().__init__()
        self.trees = trees

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.grootv.build_tree.default:
            return function(*args, **(kwargs or {}))
        x, *tree = next(self.trees)
        if not all(map(torch.equal, tree, function(x, *args[1:]))):
            raise UserError('ONNX Runtime builds another tree than PyTorch from the same map')
        return tuple(tree)


def verify(path: Path, network: nn.Module, images: Tensor) -> str:
    """Run the exported model and compare it with the network.

    The trees must be equal given the same maps. Rounding before a tree may exchange two edges of nearly
    equal weight, which outputs show far more than rounding; so the network is given the model's trees.

    Args:
        path: ONNX file.
        network: What it was exported from.
        images: Images (B, 3, H, W).

    Returns:
        The greatest difference, in words.

    Raises:
        UserError: If a tree or an output differs by more than rounding.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.register_custom_ops_library(ops.onnxruntime_library())
    model = onnx.load(path)
    names = [output.name for output in model.graph.output]
    nodes = [node for node in model.graph.node if node.domain == 'grootv' and node.op_type == 'build_tree']
    for node in nodes:
        extra = {node.input[0]: onnx.TensorProto.FLOAT, **dict.fromkeys(node.output, onnx.TensorProto.INT32)}
        model.graph.output.extend(
            onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in extra.items()
        )

    def run(model: str | bytes) -> list[Tensor]:
        session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
        return [torch.from_numpy(array) for array in session.run(None, {'image': images.numpy()})]

    results = iter(run(model.SerializeToString()))
    found = [next(results) for _ in names]
    trees = [[next(results) for _ in (node.input[0], *node.output)] for node in nodes]
    with torch.inference_mode():
        with GivenTrees(iter(trees)):
            text = compare(path, images, found, network(images), TOLERANCE)
        own = difference(run(str(path)), network(images))
    return f'{text}, {len(nodes)} trees equal ({own:.2g} if each builds its own trees)'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_export_arguments(parser)
    args = parser.parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    height, width = args.input_size
    path = Path(args.out)
    if path.is_dir():
        raise UserError(f'--out {path}: is a folder, give a file')
    if args.verify:
        ops.onnxruntime_library()  # raises before anything takes time
    network = deployable(cfg, args.checkpoint, args.trust_checkpoint)
    metadata = normalisation(cfg)
    if isinstance(network, Logits):
        names, classes = class_names(cfg, args.checkpoint, args.trust_checkpoint), cfg.model.head.num_classes
        if len(names) == classes:
            metadata['classes'] = json.dumps(list(names), ensure_ascii=False)
        else:
            print(f'no names in the metadata: {len(names)} are known of {classes} classes', flush=True)
    with write_named(path) as draft:
        export_onnx(network, random_images(2, height, width), metadata, draft)
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MB', flush=True)
    if args.verify:
        sizes = ((1, height, width), (3, 33, 71), (2, height + 65, width + 38))
        for seed, size in enumerate(sizes):
            print(verify(path, network, random_images(*size, seed)), flush=True)


if __name__ == '__main__':
    cli.run(main)
