"""Export a config's classifier, or the backbone of its detector or segmentor, as a .pt2 file of PyTorch.

    python tools/deployment/torch2export.py CONFIG [CHECKPOINT] --out model.pt2 --verify
    python tools/deployment/torch2export.py CONFIG [CHECKPOINT] --out model.pt2 --aoti --verify

The model takes images (B, 3, H, W), normalised as the config's data_preprocessor says, and gives the logits
of a classifier, or the maps of a backbone. It runs with torch and grootv.ops alone: docs/deployment.md.
"""

import grootv.interrupt  # noqa: F401 # isort: skip
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from grootv import cli
from grootv.errors import UserError
from grootv.export import compare, compile_package, deployable, export_program, random_images
from grootv.files import write_named

SMALLEST = 33  # pixels; below, the last map has one row or column, which a program of torch.export refuses
TOLERANCE = 1e-3  # of compiled code, which rounds differently; an exported graph does not

# Run by another Python, which imports torch and grootv.ops alone.
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


def run_apart(path: Path, aoti: bool, images: list[Tensor]) -> list[list[Tensor]]:
    """Outputs of a model for each batch of images, from a process that imports torch and grootv.ops only."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_export_arguments(parser)
    parser.add_argument('--aoti', action='store_true', help='compile it with AOTInductor')
    args = parser.parse_args()
    cfg = cli.load_config(args.config, args.cfg_options)
    path = Path(args.out)
    if path.suffix != '.pt2':
        raise UserError(f'--out {path}: end it in .pt2')
    height, width = args.input_size
    if min(height, width) < SMALLEST:
        raise UserError(f'--input-size must be {SMALLEST} or more each, got {height} {width}')
    network = deployable(cfg, args.checkpoint, args.trust_checkpoint)
    program = export_program(network, height, width)
    with write_named(path) as draft:
        if args.aoti:
            compile_package(program, draft)
        else:
            torch.export.save(program, draft)
    limits = [str(limit) for limit in program.range_constraints.values()]
    print(f'{path}: {path.stat().st_size / 2**20:.1f} MB; sizes {", ".join(limits)}', flush=True)
    if args.verify:
        sizes = ((1, 2 * height + 1, width + 69), (2, height, width), (3, height + 13, width + 6))
        batches = [random_images(*size, seed) for seed, size in enumerate(sizes)]
        for images, found in zip(batches, run_apart(path, args.aoti, batches), strict=True):
            with torch.no_grad():
                expected = network(images)
            print(compare(path, images, found, expected, TOLERANCE if args.aoti else 0), flush=True)


if __name__ == '__main__':
    cli.run(main)
