# The same fine-tuning without a tree.
_base_ = './grootl-130m_lora_alpaca.py'

model = dict(tree=dict(scale=0.0))
