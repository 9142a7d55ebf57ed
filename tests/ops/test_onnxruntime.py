"""The operators inside ONNX Runtime: the same bits as in torch, sentences for bad input, no torch needed."""

import ctypes
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from grootv import ops
from tests.ops.cases import READ_OUT, features, make

onnxruntime, onnx = pytest.importorskip('onnxruntime'), pytest.importorskip('onnx')
TensorProto, helper = onnx.TensorProto, onnx.helper

TREE = ('order', 'parent')
NAMES = {
    'tree_scan': ('input', 'decay', *TREE),
    'selective_tree_scan': ('x', 'delta', 'A', 'B', 'delta_bias', *TREE),
    'gated_read_out': READ_OUT,
    'tree_edge_distance': ('features', *TREE),
}


def session(name, inputs, outputs, threads=1, **attributes):
    """A session of one operator. An input '' is left out."""
    given = [(input, TensorProto.INT32 if input in TREE else TensorProto.FLOAT) for input in inputs if input]
    results = [(output, TensorProto.INT32 if output in TREE else TensorProto.FLOAT) for output in outputs]
    graph = helper.make_graph(
        [helper.make_node(name, inputs, outputs, domain='grootv', **attributes)],
        name,
        *([helper.make_tensor_value_info(*value, None) for value in values] for values in (given, results)),
    )
    opsets = [helper.make_opsetid('', 18), helper.make_opsetid('grootv', 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(ops.onnxruntime_library())
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(session, *tensors):
    names = [value.name for value in session.get_inputs()]
    arrays = (np.asarray(tensor) for tensor in tensors)
    return session.run(None, dict(zip(names, arrays, strict=True)))


def inputs_of(call) -> dict:
    """A model's inputs by name. Without a distance they are those from before the scan had one."""
    *first, distance, scale = call.tensors if 'selective' in call.name else [*call.tensors, None, None]
    given = dict(zip(NAMES[call.name], (*first, *(call.tree or ())), strict=True))
    decomposition = {'decomposition': None}
    return given if distance is None else given | decomposition | dict(distance=distance, scale=scale)


def run_call(inputs: dict, call, threads=1):
    names = [name if tensor is not None else '' for name, tensor in inputs.items()]
    given = (tensor for tensor in inputs.values() if tensor is not None)
    return run(session(call.name, names, ['result'], threads, **call.options), *given)[0]


def tree_session(metric='cosine', root=0, **options):
    return session('build_tree', ['features'], TREE, metric=metric, root=root, **options)


@pytest.mark.parametrize(
    ('shape', 'metric', 'root'),
    [
        ((2, 14, 14, 20), 'cosine', 0),
        ((3, 25, 16, 32), 'euclidean', 7),
        ((1, 1, 64, 5), 'manhattan', 63),
        ((2, 1, 1, 3), 'cosine', 0),
        ((0, 4, 4, 3), 'cosine', 0),
    ],
)
@pytest.mark.parametrize('threads', [1, 2])
def test_trees_are_those_of_torch(shape, metric, root, threads):
    maps = features('normal', *shape)
    found = run(tree_session(metric, root, threads=threads), maps)
    for array, tensor in zip(found, ops.build_tree(maps, metric, root), strict=True):
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, tensor)


@pytest.mark.parametrize('shape', [(2, 14, 14, 40), (3, 5, 7, 300), (1, 1, 33, 1), (0, 3, 3, 8)])
@pytest.mark.parametrize('threads', [1, 2])
def test_scans_and_read_outs_are_those_of_torch(shape, threads):
    kinds = ('', ' plain', ' with distance', ' with distance, plain')
    forms = 'tree_scan both', 'tree_scan up', *(f'selective_tree_scan{kind}' for kind in kinds)
    forms += 'tree_edge_distance cosine', 'tree_edge_distance manhattan'
    for form in (*forms, 'gated_read_out'):
        call = make(form, *shape)
        np.testing.assert_array_equal(run_call(inputs_of(call), call, threads), call(ops)[0])


def test_bad_arguments_of_a_distance_are_reported():
    call = make('tree_edge_distance cosine', 2, 3, 4, 5)
    distance = session(call.name, ['features', *TREE], ['out'], metric='cosine')
    wrong = call.tree.parent.clone().index_fill_(1, torch.tensor([3]), 12)
    for vectors, parent, sentence in [
        (call.tensors[0][0], wrong, 'features must have shape (B, L, C), got (12, 5)'),
        (call.tensors[0], wrong, 'must be a tree in breadth-first order, but those of item'),
    ]:
        with pytest.raises(Exception, match=re.escape(sentence)):
            run(distance, vectors, call.tree.order, parent)
    with pytest.raises(Exception, match='manhattan, got'):
        run(session(call.name, ['features', *TREE], ['out'], metric='far'), *call.tensors, *call.tree)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (dict(x=torch.rand(2, 12)), 'selective_tree_scan: x must have shape (B, L, C), got (2, 12)'),
        (dict(delta_bias=torch.rand(5, 1)), 'delta_bias needs one value per channel, shape (5), got (5, 1)'),
        (dict(distance=torch.rand(2, 11)), 'distance needs one value per vertex, shape (2, 12), got (2, 11)'),
        (dict(scale=None), 'distance and scale must be given together, got distance alone'),
        (dict(order=torch.full((2, 12), 99).int()), 'order and parent must be a tree in breadth-first order'),
        (dict(x=torch.rand(2, 12, 5).double()), 'Unexpected input data type'),
    ],
)
def test_bad_arguments_of_a_scan_are_reported(change, sentence):
    call = make('selective_tree_scan with distance', 2, 3, 4, 5)
    with pytest.raises(Exception, match=re.escape(sentence)):
        run_call(inputs_of(call) | change, call)


def test_bad_arguments_of_a_tree_are_reported():
    maps = features('normal', 1, 3, 4, 5)
    with pytest.raises(Exception, match=re.escape('features must have shape (B, H, W, C), got (3, 4, 5)')):
        run(tree_session(), maps[0])
    for options, sentence in ((dict(root=12), '0 to 11, got 12'), (dict(metric='far'), 'manhattan, got')):
        with pytest.raises(Exception, match=sentence):
            run(tree_session(**options), maps)
    with pytest.raises(Exception, match='root'):
        session('build_tree', ['features'], TREE, metric='cosine')
    for outputs in (['order', ''], ['order']):
        with pytest.raises(Exception, match='build_tree'):
            session('build_tree', ['features'], outputs, metric='cosine', root=0)


def test_an_older_runtime_is_reported():
    """Of its functions, found by their places, this runtime has CreateStatus only."""
    messages, version = [], ctypes.create_string_buffer(b'1.16.3')
    status = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)(
        lambda code, message: messages.append(message.decode()) or 1
    )
    api = (ctypes.c_void_p * 1)(ctypes.cast(status, ctypes.c_void_p))
    get_api = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)(
        lambda number: ctypes.addressof(api) if number == 1 else 0
    )
    get_version = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: ctypes.addressof(version))
    base = (ctypes.c_void_p * 2)(*(ctypes.cast(each, ctypes.c_void_p) for each in (get_api, get_version)))
    register = ctypes.CDLL(ops.onnxruntime_library()).RegisterCustomOps
    register.restype = ctypes.c_size_t
    assert register(None, base) == 1
    assert messages == ['grootv needs ONNX Runtime 1.17 or later, this is 1.16.3']


def test_the_library_runs_without_torch():
    code = (
        'import importlib.util, sys, onnxruntime\n'
        'from pathlib import Path\n'
        'library = Path(importlib.util.find_spec("grootv.ops").origin).with_name("_onnxruntime.so")\n'
        'options = onnxruntime.SessionOptions()\n'
        'options.register_custom_ops_library(str(library))\n'
        'print("torch" in sys.modules)'
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout == 'False\n', result.stderr


@pytest.mark.skipif(not shutil.which('nm'), reason='needs binutils')
def test_the_library_gives_one_function_and_takes_none_of_torch():
    def symbols(which):
        command = ['nm', '--dynamic', '--format=just-symbols', which, ops.onnxruntime_library()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert symbols('--defined-only') == ['RegisterCustomOps']
    assert not [name for name in symbols('--undefined-only') if re.search('torch|c10|Ort', name)]


def test_a_missing_library_is_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(ops._library, '_ONNXRUNTIME', tmp_path / '_onnxruntime.so')
    with pytest.raises(ImportError, match=re.escape(f'_onnxruntime.so is not in {tmp_path}; build it with')):
        ops.onnxruntime_library()
