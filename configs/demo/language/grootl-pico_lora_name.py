# The small Mamba of mamba-pico_topics.py, fine-tuned to name the topic of passages, with the published tree.
_base_ = './grootl-pico_lora_continue.py'

train_dataloader = dict(dataset=dict(ann_file='name_train.json'))
val_dataloader = dict(dataset=dict(ann_file='name_held-out.json'))
test_dataloader = val_dataloader

# A small Mamba learns to name topics late: after 150 iterations it still guesses.
train_cfg = dict(max_iters=300, val_interval=300)
