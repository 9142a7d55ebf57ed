"""GrootV written a second time, from its definition and for tests only.

Plain PyTorch on (B, C, H, W) maps, the parameters in a flat dict under the names of the published
checkpoints. Slow and literal: the tree by SciPy, the state of a vertex as the sum
over all vertices of the product of decays along the path. It shares nothing with the package.
"""

import math

import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree


def random_parameters(width, depths, classes, seed=0, layer_scale=False):
    """Parameters under their published names, none at a value that would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}

    def add(name, *shape, scale=None, centre=0.0):
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 4
        scale = 1 / math.sqrt(fan_in) if scale is None else scale
        parameters[name] = centre + scale * torch.randn(shape, generator=generator)

    def add_layer(name, out, *shape):
        add(f'{name}.weight', out, *shape)
        add(f'{name}.bias', out)

    def add_norms(size, *names):
        for name in names:
            add(f'{name}.weight', size, scale=0.2, centre=1.0)
            add(f'{name}.bias', size, scale=0.2)

    for number, (before, after) in enumerate([(3, width // 2), (width // 2, width)], 1):
        add_layer(f'patch_embed.conv{number}', after, before, 3, 3)
        add_norms(after, f'patch_embed.norm{number}.1')
    for i, depth in enumerate(depths):
        c = width * 2**i
        inner, rank = 2 * c, math.ceil(c / 16)
        for block in (f'levels.{i}.blocks.{j}' for j in range(depth)):
            ssm = f'{block}.TreeSSM'
            add_norms(c, f'{block}.norm1.0', f'{block}.norm2.0')
            add_norms(inner, f'{ssm}.out_norm', f'{ssm}.h_norm')
            add(f'{ssm}.in_proj.weight', 2 * inner, c)
            add(f'{ssm}.conv2d.weight', inner, 1, 3, 3)
            add(f'{ssm}.x_proj_weight', 1, rank + 2, inner, scale=inner**-0.5)
            add(f'{ssm}.dt_projs_weight', 1, inner, rank, scale=rank**-0.5)
            add(f'{ssm}.dt_projs_bias', 1, inner, scale=1.0, centre=-2.0)
            add(f'{ssm}.A_logs', inner, 1, scale=0.3)
            add(f'{ssm}.Ds', inner, scale=0.3, centre=1.0)
            add(f'{ssm}.out_proj.weight', c, inner)
            add_layer(f'{block}.mlp.fc1', 4 * c, c)
            add_layer(f'{block}.mlp.fc2', c, 4 * c)
            for number in (1, 2) if layer_scale else ():
                add(f'{block}.gamma{number}', c, scale=0.2, centre=0.5)
        add_norms(c, f'levels.{i}.norm.0')
        if i < len(depths) - 1:
            add(f'levels.{i}.downsample.conv.weight', 2 * c, c, 3, 3)
            add_norms(2 * c, f'levels.{i}.downsample.norm.1')
    hidden = 8 * width * 3 // 2
    add('conv_head.0.weight', hidden, 8 * width, 1, 1)
    add_norms(hidden, 'conv_head.1.0')
    add('conv_head.1.0.running_mean', hidden, scale=0.2)
    parameters['conv_head.1.0.running_var'] = 0.5 + torch.rand(hidden, generator=generator)
    parameters['conv_head.1.0.num_batches_tracked'] = torch.tensor(7)
    add_layer('head', classes, hidden)
    return parameters


def forward(parameters, image, depths):
    """Logits (B, classes), the maps of the four stages, and the parents of every block's tree."""
    p = parameters
    x = F.gelu(layer_norm(p, 'patch_embed.norm1.1', conv(p, 'patch_embed.conv1', image, 2)))
    x = layer_norm(p, 'patch_embed.norm2.1', conv(p, 'patch_embed.conv2', x, 2))
    stages, parents = [], []
    for i, depth in enumerate(depths):
        for j in range(depth):
            x, parent = block(p, f'levels.{i}.blocks.{j}', x)
            parents.append(parent)
        x = layer_norm(p, f'levels.{i}.norm.0', x)
        stages.append(x)
        if i < len(depths) - 1:
            x = conv(p, f'levels.{i}.downsample.conv', x, 2)
            x = layer_norm(p, f'levels.{i}.downsample.norm.1', x)
    norm = 'conv_head.1.0'
    x = F.conv2d(x, p['conv_head.0.weight']) - p[f'{norm}.running_mean'][:, None, None]
    x = x / (p[f'{norm}.running_var'][:, None, None] + 1e-5).sqrt()
    x = F.gelu(x * p[f'{norm}.weight'][:, None, None] + p[f'{norm}.bias'][:, None, None])
    return x.mean((2, 3)) @ p['head.weight'].T + p['head.bias'], stages, parents


def block(p, name, x):
    y, parent = tree_ssm(p, f'{name}.TreeSSM', layer_norm(p, f'{name}.norm1.0', x))
    x = x + scale(p, f'{name}.gamma1', y)
    y = F.gelu(linear(p, f'{name}.mlp.fc1', layer_norm(p, f'{name}.norm2.0', x)))
    return x + scale(p, f'{name}.gamma2', linear(p, f'{name}.mlp.fc2', y)), parent


def tree_ssm(p, name, x):
    height, width = x.shape[2:]
    x, gate = linear(p, f'{name}.in_proj', x).chunk(2, 1)
    x = conv(p, f'{name}.conv2d', x, groups=x.shape[1])
    x = x * torch.sigmoid(x)
    trees = [spanning_tree(guide) for guide in x.detach().float()]

    x = x.flatten(2)  # (B, inner, L)
    rank = p[f'{name}.dt_projs_weight'].shape[2]
    projected = p[f'{name}.x_proj_weight'][0] @ x
    low, write, read = projected.split([rank, 1, 1], 1)
    step = p[f'{name}.dt_projs_weight'][0] @ low + p[f'{name}.dt_projs_bias'][0][:, None]
    step = torch.logaddexp(step, torch.zeros_like(step))  # softplus
    decay = torch.exp(-step * torch.exp(p[f'{name}.A_logs']))
    pairs = zip(trees, step * write * x, decay, strict=True)
    state = torch.stack([scan(u, a, *tree) for tree, u, a in pairs])
    y = read * layer_norm(p, f'{name}.h_norm', state, 1e-5) + p[f'{name}.Ds'][:, None] * x
    y = layer_norm(p, f'{name}.out_norm', y, 1e-5).unflatten(2, (height, width))
    y = linear(p, f'{name}.out_proj', y * gate * torch.sigmoid(gate))
    return y, torch.tensor([parent for parent, _ in trees])


def scan(u, a, parent, order):
    """h[i] = sum over j of (product of decays on the path from i to j) u[j], shape (inner, L)."""
    size = len(order)
    place = {vertex: k for k, vertex in enumerate(order)}
    paths = u.new_zeros(len(u), size, size)  # between the k-th and the l-th vertex of the order
    paths[:, range(size), range(size)] = 1
    for k, vertex in enumerate(order[1:], 1):
        row = a[:, vertex, None] * paths[:, place[parent[vertex]], :k].clone()
        paths[:, k, :k] = row
        paths[:, :k, k] = row
    h = (paths @ u[:, order, None]).squeeze(2)
    return h[:, [place[vertex] for vertex in range(size)]]


def spanning_tree(guide):
    """Parents and an order from the root 0 of the minimum spanning tree of a map (C, H, W)."""
    height, width = guide.shape[1:]
    vertex = torch.arange(height * width).view(height, width)
    vertical, horizontal = (vertex[:-1], vertex[1:]), (vertex[:, :-1], vertex[:, 1:])
    first, second = (torch.cat([a.flatten(), b.flatten()]) for a, b in zip(vertical, horizontal, strict=True))
    columns = guide.flatten(1)
    weight = torch.exp(-F.cosine_similarity(columns[:, first], columns[:, second], dim=0))
    rank = weight.argsort(stable=True).argsort() + 1  # of two equal edges the first one is lighter
    graph = csr_array((rank, (first, second)), (vertex.numel(), vertex.numel()))
    order, parent = breadth_first_order(minimum_spanning_tree(graph), 0, directed=False)
    parent[0] = 0
    return parent.tolist(), order.tolist()


def layer_norm(p, name, x, eps=1e-6):
    """Over the channels, dimension 1."""
    shape = (-1, *[1] * (x.dim() - 2))
    x = x - x.mean(1, keepdim=True)
    x = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
    return x * p[f'{name}.weight'].view(shape) + p[f'{name}.bias'].view(shape)


def conv(p, name, x, stride=1, groups=1):
    return F.conv2d(x, p[f'{name}.weight'], p.get(f'{name}.bias'), stride, 1, groups=groups)


def linear(p, name, x):
    y = torch.einsum('oc,bchw->bohw', p[f'{name}.weight'], x)
    return y + p[f'{name}.bias'][:, None, None] if f'{name}.bias' in p else y


def scale(p, name, x):
    return x * p[name][:, None, None] if name in p else x
