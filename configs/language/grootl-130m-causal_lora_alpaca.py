# A token receives from earlier ones only, in its context too.
_base_ = './grootl-130m_lora_alpaca.py'

model = dict(tree=dict(causal=True))
