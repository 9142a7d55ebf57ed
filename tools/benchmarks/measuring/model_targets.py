"""What the figures of ``benchmark_model.py`` have to reach."""

from gpu_checks.report import Report

from .attribution import TREE

# GrootV-T on the CPU, at 224 px, in float32: times and bytes of timm's swin_tiny.
TIMES = {('forward', 1): 1.0, ('forward', 8): 1.1, ('step', 8): 1.25}
PEAK_MEMORY = {('step', 8): 1.2}
TREE_AND_SCAN = 10  # per cent of the forward pass
PER_STAGE = 0.9  # times the time of a tree per block, where trees dominate; elsewhere 1
NAMED = dict(network='grootv_tiny', peer='swin_tiny_patch4_window7_224', device='cpu', input_size=224)


def judge(found: dict) -> Report:
    """Every target as a figure: met, missed, or why it was not measured.

    Args:
        found: What ``benchmark_model.py`` writes. Its first network is the one that is judged.
    """
    report = Report('targets', judge=not found['quick'])
    ours, peer = next(iter(found['parameters'])), found['beside']
    size = found['rows'][0]['input_size']
    named = dict(network=ours, peer=peer, device=found['device']['name'], input_size=size) == NAMED
    common = dict(network=ours, dtype='float32', how='eager', input_size=size)
    if peer:
        for (mode, batch), limit in TIMES.items():
            row = pick(found['rows'], **common, mode=mode, batch=batch)
            add(report, f'{mode}, batch {batch}, time beside {peer}', row, peer, limit if named else None)
        for (mode, batch), limit in PEAK_MEMORY.items():
            row = pick(found['memory'], **common, mode=mode, batch=batch)
            add(
                report,
                f'{mode}, batch {batch}, peak memory beside {peer}',
                row,
                peer,
                limit if named else None,
            )
    shares(report, [each for each in found['profiles'] if each['network'] == ours], named)
    per_stage(report, found, ours)
    bfloat16(report, found, ours)
    rows = [row for row in found['rows'] if row['network'] == ours and 'eager' in row['beside']]
    for how in dict.fromkeys(row['how'] for row in rows):
        limit = 1.0 if how == 'torch.compile' else None
        worst(report, f'{how}, time beside eager', [row for row in rows if row['how'] == how], 'eager', limit)
    return report


def pick(rows: list[dict], **wanted) -> dict | None:
    """The row with the wanted values; of equals the first, which has a tree per block."""
    return next((row for row in rows if wanted.items() <= row.items()), None)


def add(report: Report, name: str, row: dict | None, other: str, limit: float | None) -> None:
    """The ratio of a row to another one."""
    if row is None or other not in row['beside']:
        reason = (
            'not part of this run' if row is None else row.get('not_measured') or f'{other} was not measured'
        )
        report.missing(name, 'times', reason, limit)
        return
    beside = row['beside'][other]
    ratio = beside if isinstance(beside, float) else beside['ratio']
    report.figure(name, ratio, 'times', limit, note(row, other))


def note(row: dict, other: str) -> str:
    if 'bytes' in row:
        return f'{row["bytes"] / 2**20:.0f} MiB'
    beside = row['beside'][other]
    return f'{row["median_s"] * 1e3:.1f} ms, quartiles {beside["low"]:.3f} to {beside["high"]:.3f}'


def worst(report: Report, name: str, rows: list[dict], other: str, limit: float | None = 1.0) -> None:
    """The greatest ratio of some rows to others."""
    row = max(rows, key=lambda row: row['beside'][other]['ratio'])
    figure = f'{row["mode"]}, batch {row["batch"]}, {row["dtype"]}, tree per {row["tree_per"]}'
    text = f'worst of {len(rows)}: {figure}; {note(row, other)}'
    report.figure(name, row['beside'][other]['ratio'], 'times', limit, text)


def shares(report: Report, profiles: list[dict], named: bool) -> None:
    """Edge weights, tree, order and scan in the forward pass."""
    profiles = [each for each in profiles if each['mode'] == 'forward']
    if not profiles:
        report.missing('tree and scan in the forward pass', '%', 'needs --profile', TREE_AND_SCAN)
    for each in profiles:
        part = sum(each['parts'][name] for name in (*TREE, 'scan'))
        text = f'{part * 1e3:.2f} of {each["unprofiled_seconds"] * 1e3:.2f} ms'
        name = f'tree and scan in the forward pass, batch {each["batch"]}'
        limit = TREE_AND_SCAN if named else None
        report.figure(name, 100 * part / each['unprofiled_seconds'], '%', limit, text)


def per_stage(report: Report, found: dict, ours: str) -> None:
    """A tree per stage beside a tree per block."""
    name = 'tree per stage beside tree per block'
    rows = [row for row in found['rows'] if 'block' in row['beside'] and row['how'] == 'eager']
    dominated = pick(rows, network='grootv_narrow')
    trees = pick(found['profiles'], network='grootv_narrow')
    if dominated is None or trees is None:
        report.missing(f'{name}, where trees dominate', 'times', 'needs --tree-per block stage', PER_STAGE)
    else:
        share = 100 * sum(trees['parts'][step] for step in TREE) / trees['unprofiled_seconds']
        size = dominated['input_size']
        text = f'16 channels, {size} px: trees {share:.0f} % of the forward; {note(dominated, "block")}'
        report.figure(
            f'{name}, where trees dominate', dominated['beside']['block']['ratio'], 'times', PER_STAGE, text
        )
    rows = [row for row in rows if row['network'] == ours]
    if rows:
        worst(report, f'{name}, everywhere', rows, 'block')


def bfloat16(report: Report, found: dict, ours: str) -> None:
    """Speed beside float32 where the processor multiplies in bfloat16, and results that are numbers."""
    rows = [row for row in found['rows'] if row['network'] == ours and row['dtype'] == 'bfloat16']
    eager = [row for row in rows if row['how'] == 'eager' and 'float32' in row['beside']]
    name = 'bfloat16 autocast, time beside float32'
    if not eager:
        report.missing(name, 'times', 'needs --dtype float32 bfloat16', 1.0)
    elif found['device']['name'] == 'cpu' and not found['bfloat16_hardware']:
        report.missing(name, 'times', 'the processor has no bfloat16 arithmetic', 1.0)
    else:
        worst(report, name, eager, 'float32')
    if rows:
        bad = [row for row in rows if not row['finite']]
        report.check('bfloat16 autocast, results with NaN or infinity', len(bad), f'of {len(rows)}', 0)
