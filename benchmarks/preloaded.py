"""Imports for all measurements, and the modules that loading the installed methods needs.

The server of `benchmarks.measuring` imports this once; the processes that measure are its forks.
"""

from __future__ import annotations

import importlib
import warnings

import open_clip.tokenizer
import torch

import openvocab.evaluation.run
from openvocab.methods import available_methods

__all__ = ["open_clip", "openvocab", "torch"]

for _method in available_methods().values():
    for _name in _method.preload:
        try:
            importlib.import_module(_name)
        except Exception as error:  # a broken method must not stop the server
            warnings.warn(f"{_method.key} cannot import {_name}: {error}", stacklevel=1)
