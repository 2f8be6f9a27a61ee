"""Imported by Python itself at the start of every process while this folder is on PYTHONPATH."""

import os

if os.environ.get("MEGATRON_DPOP_DEVICE") != "cpu":
    from te_install import install

    install()
