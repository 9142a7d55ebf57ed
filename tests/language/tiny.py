"""Random Mambas, a tokenizer and instructions that fit into a test."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from grootv.language import instruction_prompt, use_tree_scan
from grootv.language.fine_tuning import LanguageModel
from tests.tools.tiny_run import load_tool

ROOT = Path(__file__).resolve().parents[2]
LORA = dict(r=8, lora_alpha=16, target_modules=['x_proj', 'embeddings', 'in_proj', 'out_proj'])
END = '<|endoftext|>'
TOPICS = ('bread', 'rivers', 'tides', 'glass', 'wool', 'salt', 'clocks', 'bees')
ITEMS = [
    dict(
        instruction=f'Tell me about {topic}.',
        input='' if i % 2 else 'Be brief.',
        output=f'A word on {topic}{i % 3 * " and more"}.',
    )
    for i, topic in enumerate(TOPICS)
]


VOCABULARY = 50
TOKENS = dict(pad_token_id=0, bos_token_id=0, eos_token_id=None)
SIZES = dict(vocab_size=VOCABULARY, hidden_size=16, state_size=4, num_hidden_layers=2)


def mamba(**config) -> MambaForCausalLM:
    """Two layers whose weights are far from their initial values, so that states and trees matter."""
    model = MambaForCausalLM(MambaConfig(**{**SIZES, **TOKENS, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn_like(parameter)
    return model.eval()


def tree_mamba(*, scale=0.3, reach=3, causal=False, context_rule='item', **config) -> MambaForCausalLM:
    return use_tree_scan(mamba(**config), scale, reach, causal, context_rule)


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(1, VOCABULARY, shape)


def pad_left(items: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Items of any length as one batch, with its mask."""
    ids = torch.nn.utils.rnn.pad_sequence(items, batch_first=True, padding_side='left')
    return ids, ids.ne(0).long()


def write_model(folder: Path) -> Path:
    """A random model whose state reaches far, so that the tree matters, and its tokenizer."""
    texts = [text for item in ITEMS for text in item.values()]
    train_tokenizer = load_tool('language/new_model.py').train_tokenizer
    prompts = [instruction_prompt('{instruction}', '{input}'), instruction_prompt('{instruction}')]
    tokenizer = train_tokenizer([*texts, *4 * prompts], 500)
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MambaForCausalLM(
            MambaConfig(**{**SIZES, **TOKENS, 'vocab_size': len(tokenizer), 'eos_token_id': 0})
        )
        for name, parameter in model.named_parameters():
            if name.endswith(('in_proj.weight', 'x_proj.weight', 'embeddings.weight')):
                nn.init.normal_(parameter, std=0.4)
    model.save_pretrained(folder)
    return folder


def adapted_model(
    folder: Path, lora: dict[str, Any] | None = LORA, std: float | None = 0.2, **tree
) -> LanguageModel:
    """The model of the folder with adapters that change it, as after training; without ``std``, as before."""
    torch.manual_seed(0)
    model = LanguageModel(str(folder), tree, lora)
    for name, parameter in model.named_parameters():
        if std is not None and 'lora_' in name:
            nn.init.normal_(parameter, std=std)
    return model


def write_items(path: Path, items: object = ITEMS) -> Path:
    path.write_text(json.dumps(items))
    return path


def write_published_config(folder: Path, model: Path) -> Path:
    """GrootL's config with the tiny model, on a file of 8 items."""
    path = folder / 'published.py'
    items = write_items(folder / 'items.json')
    path.write_text(f"""
_base_ = '{ROOT}/configs/language/grootl-130m_lora_alpaca.py'
model = dict(pretrained='{model}')
train_dataloader = dict(dataset=dict(data_root='', ann_file='{items}', tokenizer='{model}'))
train_cfg = dict(max_iters=8)
""")
    return path


def write_config(folder: Path, model: Path, settings: str = '') -> Path:
    """GrootL's config with the tiny model: 6 items to train, 2 held out, 12 iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    write_items(folder / 'items.json')
    path = folder / 'tiny.py'
    path.write_text(f"""
_base_ = '{ROOT}/configs/language/grootl-130m_lora_alpaca-50k.py'
model = dict(pretrained='{model}')
dataset = dict(data_root='{folder}', ann_file='items.json', tokenizer='{model}', max_length=96)
dataset.update(preamble='alpaca')
train_dataloader = dict(dataset=dict(indices=6, **dataset))
val_dataloader = dict(dataset=dict(indices=-2, **dataset))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-2), accumulative_counts=2)
param_scheduler = [dict(type='LinearLR', start_factor=1 / 6, by_epoch=False, end=6)]
train_cfg = dict(max_iters=12, val_interval=6)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=4))
randomness = dict(seed=0)
{settings}
""")
    return path
