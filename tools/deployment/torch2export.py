"""Export a config's classifier, or the backbone of its detector or segmentor, as a .pt2 file of PyTorch.

    python tools/deployment/torch2export.py CONFIG [CHECKPOINT] --out model.pt2 --verify
    python tools/deployment/torch2export.py CONFIG [CHECKPOINT] --out model.pt2 --aoti --verify

The model takes images (B, 3, H, W), normalised as the config's data_preprocessor says, and gives the logits
of a classifier, or the maps of a backbone. It runs with torch and grootv.ops alone: docs/deployment.md.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from grootv import cli
from grootv.deployment import deployable, random_images
from grootv.errors import UserError
from grootv.ops import convolution

SMALLEST = 33  # pixels; below, the last map has one row or column, which torch.export takes for constant
TOLERANCE = 1e-3  # of the greatest value; compiled code rounds differently, an exported graph does not

# Run by another Python, which has to do with torch and grootv.ops.
RUN = """
import sys
import torch
import grootv.ops
load, path, inputs, outputs = sys.argv[1:]
if load == 'aoti':
    model = torch._inductor.aoti_load_package(path)
else:
    model = torch.export.load(path).module()
results = []
with torch.no_grad():
    for images in torch.load(inputs):
        found = model(images)
        results.append([found] if isinstance(found, torch.Tensor) else list(found))
torch.save(results, outputs)
others = {'mmengine', 'mmcv', 'mmpretrain', 'timm', 'grootv.models'} & set(sys.modules)
if others:
    sys.exit('the model imports ' + ', '.join(sorted(others)))
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_export_arguments(parser)
    parser.add_argument('--aoti', action='store_true', help='compile it with AOTInductor')
    return parser.parse_args()


def export(network: nn.Module, height: int, width: int) -> ExportedProgram:
    """Trace a network, with batch, height and width left open.

    Args:
        network: Image (B, 3, H, W) -> logits, or a tuple of maps.
        height: Of the image to trace with.
        width: Of the same.
    """
    with torch.no_grad():
        return torch.export.export(
            network,
            (random_images(2, height, width),),
            dynamic_shapes=({0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},),
        )


def compile_package(program: ExportedProgram, path: Path) -> None:
    """Compile an exported program for the CPU of this machine and write the package."""
    program = program.run_decompositions({torch.ops.aten.conv2d.default: convolution.opaque})
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))


def run_apart(path: Path, aoti: bool, images: list[Tensor]) -> list[list[Tensor]]:
    """Outputs of a model for each batch of images, from a process that knows torch and grootv.ops only."""
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, 'inputs.pt'), Path(folder, 'outputs.pt')
        torch.save(images, inputs)
        kind = 'aoti' if aoti else 'export'
        command = [sys.executable, '-c', RUN, kind, str(path.resolve()), str(inputs), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
            raise UserError(f'{path} does not run in a fresh process: {reason}')
        return torch.load(outputs)


def verify(path: Path, aoti: bool, network: nn.Module, images: list[Tensor]) -> list[str]:
    """Compare a model in a fresh process with the network here.

    Args:
        path: What was written.
        aoti: Whether it is a package of AOTInductor.
        network: What it was exported from.
        images: Batches (B, 3, H, W).

    Returns:
        The greatest difference for each batch, in words.

    Raises:
        UserError: If the model does not run there, or an output differs by more than rounding.
    """
    lines = []
    for batch, found in zip(images, run_apart(path, aoti, images), strict=True):
        with torch.no_grad():
            expected = network(batch)
        expected = [expected] if isinstance(expected, Tensor) else expected
        pairs = list(zip(found, expected, strict=True))
        greatest = max(float((a - b).abs().max()) for a, b in pairs)
        scale = max(float(b.abs().max()) for b in expected)
        shape = ' x '.join(map(str, batch.shape))
        if not greatest <= (TOLERANCE * scale if aoti else 0):
            raise UserError(
                f'{path} differs from PyTorch by {greatest:.2g} in values up to {scale:.2g} '
                f'on images of {shape}'
            )
        lines.append(f'{shape}: outputs differ by {greatest:.2g} at most in values up to {scale:.2g}')
    return lines


def main() -> None:
    args = parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    path = Path(args.out)
    if path.suffix != '.pt2':
        raise UserError(f'--out {path}: end it in .pt2')
    height, width = args.input_size
    if min(height, width) < SMALLEST:  # or the traced graph would take such images alone
        raise UserError(f'--input-size must be {SMALLEST} or more each, got {height} {width}')
    network = deployable(cfg, args.checkpoint, args.trust_checkpoint)
    program = export(network, height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    if args.aoti:
        compile_package(program, path)
    else:
        torch.export.save(program, path)
    limits = [str(limit) for limit in program.range_constraints.values()]
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MB; sizes {", ".join(limits)}', flush=True)
    if args.verify:
        images = [random_images(2, height, width), random_images(3, height + 13, width + 6, seed=1)]
        print(*verify(path, args.aoti, network, images), sep='\n', flush=True)


if __name__ == '__main__':
    cli.run(main)
