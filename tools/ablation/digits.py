_base_ = ['../../configs/demo/grootv-pico_digits.py']

# tools/train.py and tools/test.py find it beside themselves.
custom_imports = dict(imports=['ablation.scans'])
model = dict(backbone=dict(type='grootv.ScanAblation', path='tree', roots='all'))
