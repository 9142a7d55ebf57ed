"""Export a config's classifier, or the backbone of its detector or segmentor, to ONNX.

    python tools/deployment/torch2onnx.py CONFIG [CHECKPOINT] --out model.onnx --verify

The model takes images (B, 3, H, W) of any size, normalised as its metadata say, and gives the logits of a
classifier, or the maps of a backbone. Trees and scans are operators of the domain grootv: docs/deployment.md.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from grootv import cli, ops
from grootv.deployment import deployable, random_images
from grootv.errors import UserError

TOLERANCE = 1e-3  # of the greatest value: rounding stays far below, one wrong edge of a tree far above


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_export_arguments(parser)
    return parser.parse_args()


def export(network: nn.Module, image: Tensor, metadata: dict[str, str], path: Path) -> None:
    """Write a network as ONNX, with batch, height and width left open.

    Args:
        network: Image (B, 3, H, W) -> logits, or a tuple of maps.
        image: An example.
        metadata: Texts by key, for the model's metadata.
        path: File to write.
    """
    from grootv.integrations.onnx import translation_table

    stages = getattr(network, 'out_indices', None)
    logging.getLogger('onnxscript').setLevel(logging.ERROR)  # what it does not fold it tells node by node
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)  # of torch about itself
        program = torch.onnx.export(
            network,
            (image,),
            dynamo=True,
            verbose=False,
            input_names=['image'],
            output_names=['logits'] if stages is None else [f'stage{index}' for index in stages],
            dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
            custom_translation_table=translation_table(),
        )
    model = program.model
    model.ir_version = 9  # nothing needs more, and ONNX Runtime 1.17 reads no more
    # The exporter leaves its notes everywhere, with paths of this machine.
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    values += [value for node in model.graph for value in node.outputs]
    for each in (model.graph, *model.graph, *values):
        each.metadata_props.clear()
    model.metadata_props.update(metadata)
    program.save(path)


def normalisation(cfg: Config) -> dict[str, str]:
    """What the config does to an image before the network, as metadata: mean, std and order of channels."""
    steps = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    rgb = steps.get('to_rgb') or steps.get('bgr_to_rgb')
    found = {name: ' '.join(map(str, steps[name])) for name in ('mean', 'std') if steps.get(name)}
    return {**found, 'channels': 'RGB' if rgb else 'BGR'}


class GivenTrees(TorchDispatchMode):
    """Lets a network scan along trees from elsewhere, once each is what its guide calls for.

    Args:
        trees: For each call of build_tree, in order: the guide, and the tree that was built from it.
    """

    def __init__(self, trees: Iterator[list[Tensor]]):
        super().__init__()
        self.trees = trees

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is not torch.ops.grootv.build_tree.default:
            return function(*args, **(kwargs or {}))
        guide, *tree = next(self.trees)
        if not all(map(torch.equal, tree, function(guide, *args[1:]))):
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
        guide = onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None)
        tree = [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT32, None) for name in node.output
        ]
        model.graph.output.extend([guide, *tree])

    def run(model: str | bytes) -> list[Tensor]:
        session = onnxruntime.InferenceSession(model, options, providers=['CPUExecutionProvider'])
        return [torch.from_numpy(array) for array in session.run(None, {'image': images.numpy()})]

    def difference(found: list[Tensor], expected: Tensor | tuple[Tensor, ...]) -> float:
        expected = (expected,) if isinstance(expected, Tensor) else expected
        return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))

    found = run(model.SerializeToString())
    found, extra = found[: len(names)], found[len(names) :]
    with torch.inference_mode():
        with GivenTrees(iter([extra[4 * i : 4 * i + 4] for i in range(len(nodes))])):
            greatest = difference(found, network(images))
        own = difference(run(str(path)), network(images))
    scale = max(float(array.abs().max()) for array in found)
    shape = ' x '.join(map(str, images.shape))
    if not greatest <= TOLERANCE * scale:
        raise UserError(
            f'{path} differs from PyTorch by {greatest:.2g} in values up to {scale:.2g} on images of {shape}'
        )
    return (
        f'{shape}: {len(nodes)} trees equal, outputs differ by {greatest:.2g} at most in values up to '
        f'{scale:.2g} ({own:.2g} if each builds its own trees)'
    )


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    height, width = args.input_size
    path = Path(args.out)
    if path.is_dir():
        raise UserError(f'--out {path}: is a folder, give a file')
    if args.verify:
        ops.onnxruntime_library()  # raises before anything takes time
    network = deployable(cfg, args.checkpoint, args.trust_checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    export(network, random_images(2, height, width), normalisation(cfg), path)
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MB', flush=True)
    if args.verify:
        sizes = ((1, height, width), (3, height // 2 + 1, width // 3 + 1), (2, 32, width))
        for seed, size in enumerate(sizes):
            print(verify(path, network, random_images(*size, seed)), flush=True)


if __name__ == '__main__':
    cli.run(main)
