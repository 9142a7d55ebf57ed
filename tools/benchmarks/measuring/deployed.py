"""GrootV's inference as the deployment tools write it: any batch, height and width."""

from pathlib import Path

import torch
from torch import Tensor, nn

from grootv.export import compile_package, export_onnx, export_program

# By the word for it in the results.
KINDS = {'export': 'torch.export', 'aoti': 'AOTInductor', 'onnx': 'ONNX Runtime'}


class Deployed(nn.Module):
    """A network whose calls another one answers.

    Args:
        network: Owner of the parameters.
        call: Images -> what the network gives.
    """

    def __init__(self, network: nn.Module, call):
        super().__init__()
        self.network = network
        self.call = call

    def forward(self, images: Tensor) -> Tensor:
        return self.call(images)


def deployed(kind: str, network: nn.Module, size: int, folder: Path) -> Deployed:
    """A classifier, exported and loaded again.

    Args:
        kind: A key of ``KINDS``.
        network: Image (B, 3, H, W) -> logits.
        size: Height and width to trace with.
        folder: For the files.
    """
    network = network.eval()
    return Deployed(network, LOADERS[kind](network, size, folder))


def exported(network: nn.Module, size: int, folder: Path):
    path = folder / 'model.pt2'
    torch.export.save(export_program(network, size, size), path)
    return torch.export.load(path).module().forward


def compiled_ahead(network: nn.Module, size: int, folder: Path):
    path = folder / 'package.pt2'
    compile_package(export_program(network, size, size), path)
    return torch._inductor.aoti_load_package(str(path))


def in_onnxruntime(network: nn.Module, size: int, folder: Path):
    import onnxruntime

    from grootv import ops

    path = folder / 'model.onnx'
    with torch.no_grad():
        export_onnx(network, torch.randn(2, 3, size, size), {}, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Waiting threads would otherwise keep the cores busy while the next network takes its turn.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.register_custom_ops_library(ops.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run(None, {'image': images.numpy()})[0])


LOADERS = {'export': exported, 'aoti': compiled_ahead, 'onnx': in_onnxruntime}
