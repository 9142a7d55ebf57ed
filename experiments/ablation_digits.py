_base_ = ['../configs/demo/grootv-pico_digits.py']

custom_imports = dict(imports=['experiments.scans'])
model = dict(backbone=dict(type='grootv.ScanAblation', path='tree', roots='all'))
