# As the released script: everything trains and nothing is held out.
_base_ = [
    '../_base_/models/grootl-130m_lora.py',
    '../_base_/datasets/alpaca_bs1.py',
    '../_base_/schedules/alpaca_bs16_adamw_1e.py',
    '../_base_/language_runtime.py',
]

model = dict(keep_tied=True)
