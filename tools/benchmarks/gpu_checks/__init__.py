"""The sections of ``gpu_check.py``. Each module has ``run(options, report)``."""
