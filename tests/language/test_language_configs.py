"""The recipe of GrootL says what the paper states and the README decides."""

import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from grootv.language import fine_tuning, use_tree_scan

from .tiny import ROOT

FOLDER = ROOT / 'configs/language'
CONFIGS = {path.stem: Config.fromfile(path) for path in sorted(FOLDER.glob('*.py'))}
PUBLISHED, HELD_OUT = 'grootl-130m_lora_alpaca', 'grootl-130m_lora_alpaca-50k'
TREES = {
    PUBLISHED: dict(scale=0.3, reach=3, causal=False),
    'grootl-130m-causal_lora_alpaca': dict(scale=0.3, reach=3, causal=True),
    'mamba-130m_lora_alpaca': dict(scale=0.0, reach=3, causal=False),
}


CONFIG = CONFIGS[PUBLISHED]  # the others of TREES differ in the tree alone


def test_configs_differ_in_the_tree_alone():
    others = {name: CONFIGS[name].to_dict() for name in TREES}
    assert {name: other['model'].pop('tree') for name, other in others.items()} == TREES
    assert all(other == others[PUBLISHED] for other in others.values())
    assert CONFIGS.keys() == {*TREES, HELD_OUT}


def test_model_is_the_published_one(monkeypatch):
    def load(path: str, **tree) -> tuple[nn.Module, None]:
        mamba = MambaForCausalLM(MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24))
        return use_tree_scan(mamba, **tree), None

    monkeypatch.setattr(fine_tuning, 'load_language_model', load)
    with torch.device('meta'):
        model = MODELS.build(CONFIG.model)
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    assert sum(sizes) == 1_898_304
    assert sum(p.numel() for p in model.parameters()) - sum(sizes) == 129_135_360
    lora = CONFIG.model.lora
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.0)
    assert set(lora.target_modules) == {'x_proj', 'embeddings', 'in_proj', 'out_proj'}
    assert CONFIG.model.keep_tied


def test_metafile_and_table_of_the_evaluation_state_the_published_results():
    models = yaml.safe_load((FOLDER / 'metafile.yml').read_text())['Models']
    assert {entry['Metadata']['Parameters'] for entry in models} == {129_135_360}
    results = {entry['Name']: entry.get('Results', []) for entry in models}
    found = {
        name: [value for result in given for value in result['Metrics'].values()]
        for name, given in results.items()
    }
    tree, alone = found.pop(PUBLISHED), found.pop('mamba-130m_lora_alpaca')
    assert tree == [65.0, 49.8, 69.5, 51.1, 15.9, 28.9, 19.2]
    assert alone == [64.7, 48.3, 65.1, 52.2, 17.7, 28.6, 17.8]
    assert not any(found.values())
    columns = ('piqa', 'arc_easy', 'sst2', 'winogrande', 'lambada_openai', 'race_as_published', 'openbookqa')
    rows = Config.fromfile(FOLDER / 'zero-shot.yml').published.models
    plain = [64.5, 48.0, 65.6, 51.8, 16.1, 27.4, 16.8]
    assert {name: [row[task] for task in columns] for name, row in rows.items()} == {
        'Mamba-130M': plain,
        'Mamba-130M, fine-tuned on Alpaca': alone,
        'GrootL (published tree), fine-tuned on Alpaca': tree,
    }
    means = [np.mean(np.delete(row, 4)) for row in (tree, alone, plain)]
    readme = ' '.join((FOLDER / 'README.md').read_text().split())
    assert (
        f'gain is {means[0] - means[1]:.1f} points** of accuracy on average: {means[0]:.1f} after' in readme
    )
    assert f'after {means[1]:.1f}.' in readme and f'on average {means[2]:.1f}.' in readme


def test_optimizer_and_rates_of_the_updates():
    """AdamW in bfloat16, 16 items an update; linear over the first twenty updates, then constant."""
    wrapper = CONFIG.optim_wrapper
    assert (wrapper.type, wrapper.accumulative_counts) == ('grootv.BFloat16OptimWrapper', 16)
    assert wrapper.optimizer == dict(type='AdamW', lr=2e-5, betas=(0.9, 0.999), weight_decay=0.0)
    assert wrapper.clip_grad == dict(max_norm=1.0)
    assert CONFIG.auto_scale_lr == dict(base_batch_size=CONFIG.train_dataloader.batch_size, enable=False)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=wrapper.optimizer.lr)
    (warm_up,) = CONFIG.param_scheduler
    scheduler = PARAM_SCHEDULERS.build(dict(optimizer=optimizer, **warm_up))
    rates = []
    for _ in range(40 * 16):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert rates[15::16] == pytest.approx([2e-5 * min(number / 20, 1) for number in range(1, 41)])


def test_one_epoch_of_single_items():
    train = CONFIG.train_dataloader
    assert train.batch_size == 1
    assert train.dataset.max_length == 2048 and train.dataset.preamble == 'none'
    assert 'indices' not in train.dataset and CONFIG.train_cfg == dict(by_epoch=False, max_iters=52_002)
    assert (train.sampler.type, train.sampler.shuffle) == ('InfiniteSampler', True)
    assert not any(name.startswith(('val', 'test')) for name in CONFIG)


def test_the_last_items_can_be_held_out():
    config = CONFIGS[HELD_OUT]
    train, test = config.train_dataloader, config.test_dataloader
    assert train.dataset == dict(CONFIG.train_dataloader.dataset, indices=50_000)
    assert test.dataset == dict(train.dataset, indices=-2_002)
    assert config.val_dataloader == test
    assert config.val_evaluator == config.test_evaluator == dict(type='grootv.Perplexity')
    assert config.train_cfg.max_iters == 50_000 and not config.model.keep_tied
    hook = config.default_hooks.checkpoint
    assert hook.save_best == 'perplexity' and 'rule' not in hook  # inferred, also for another metric
    assert (config.optim_wrapper, config.param_scheduler) == (CONFIG.optim_wrapper, CONFIG.param_scheduler)


def test_own_instructions_train_and_validate_by_the_guide(tmp_path):
    guide = (
        (ROOT / 'docs/language.md').read_text().split('# own.py, in configs/language\n')[1].split('```')[0]
    )
    (tmp_path / 'own.py').write_text(guide.replace('./grootl', f'{FOLDER}/grootl'))
    config = Config.fromfile(tmp_path / 'own.py')
    sides = [config[f'{side}_dataloader'].dataset for side in ('train', 'val', 'test')]
    files = [(side.data_root, side.ann_file, side.indices) for side in sides]
    validation = ('data/own', 'validation.jsonl', None)
    assert files == [('data/own', 'train.jsonl', None), validation, validation]
    assert {side.type for side in sides} == {'grootv.InstructionDataset'}


@pytest.mark.parametrize('config', CONFIGS.values(), ids=CONFIGS)
def test_checkpoints_fall_on_updates(config):
    hook = config.default_hooks.checkpoint
    assert (hook.type, hook.by_epoch) == ('grootv.CheckpointHook', False)
    for interval in (hook.interval, config.train_cfg.get('val_interval', 0)):
        assert interval % config.optim_wrapper.accumulative_counts == 0
    assert config.default_hooks.epoch_seed.type == 'grootv.EpochSeedHook'
    assert config.train_dataloader.persistent_workers is False


DEMO = {
    'mamba-pico_topics': 'texts',
    'grootl-pico_lora_continue': 'continue',
    'grootl-pico_lora_name': 'name',
}


@pytest.mark.parametrize('name', DEMO)
def test_demo_adapts_what_the_published_run_does_and_holds_data_out(name):
    demo = Config.fromfile(ROOT / f'configs/demo/language/{name}.py')
    assert demo.train_dataloader.dataset.ann_file == f'{DEMO[name]}_train.json'
    assert demo.val_dataloader.dataset.ann_file == f'{DEMO[name]}_held-out.json'
    assert demo.test_dataloader == demo.val_dataloader
    if name != 'mamba-pico_topics':
        assert demo.model.lora == CONFIG.model.lora and demo.model.tree == CONFIG.model.tree
