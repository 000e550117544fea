"""Reads the tensors of a TorchScript archive without TorchScript and without running its code.

OpenAI distributes CLIP as such archives. `torch.jit.load` is deprecated and compiles the code in
them. The archive is a zip whose `data.pkl` describes a tree of objects, which
`openvocab.reading.torch_pickles` rebuilds with inert stand-ins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from openvocab.errors import InputError
from openvocab.reading.checkpoints import kind_of
from openvocab.reading.files import DAMAGE
from openvocab.reading.torch_pickles import ScriptModule, StoredTensor, open_torch_zip, open_zip

_MOST_CODE = 1 << 26  # bytes
_DEEPEST = 50
_GELU = re.compile(rb"\bgelu\(")
_SIGMOID = re.compile(rb"\bsigmoid\(")


def is_torchscript(path: str | Path) -> bool:
    """Return whether a file is a TorchScript archive: a zip with `constants.pkl` in it."""
    try:
        return kind_of(path) == "torchscript"
    except InputError:
        return False


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Return parameters and buffers of a TorchScript archive, under their `state_dict` names.

    Raises:
        InputError: the archive is damaged, or its pickle asks for anything but tensors.
    """
    opened = open_torch_zip(path)
    described = dict(_tensors(opened.content, "", 0))
    if not described:
        raise InputError(f"{path} is a TorchScript archive without a tensor; give weights")
    return opened.build(described)


def torchscript_activation(path: str | Path) -> Literal["quick_gelu", "gelu"] | None:
    """Return the activation of an archive's model; its code is searched for it, but never run.

    `torch.jit` writes `x * sigmoid(1.702 x)` as a call of `sigmoid`, and GELU as one of `gelu`.

    Returns:
        The activation; None where the code holds neither, or both.

    Raises:
        InputError: the archive is damaged.
    """
    gelu = sigmoid = False
    try:
        with open_zip(path) as archive:
            codes = [i for i in archive.infolist() if i.filename.endswith(".py")]
            if sum(code.file_size for code in codes) > _MOST_CODE:
                raise InputError(
                    f"{path} was refused: its code has over {_MOST_CODE} bytes; use other weights"
                )
            for code in codes:
                text = archive.read(code)
                gelu, sigmoid = (
                    gelu or bool(_GELU.search(text)),
                    sigmoid or bool(_SIGMOID.search(text)),
                )
    except InputError:
        raise
    except DAMAGE:
        raise InputError(f"{path} is a damaged TorchScript archive; fetch it again") from None
    if gelu == sigmoid:
        return None
    return "gelu" if gelu else "quick_gelu"


def _tensors(node: Any, prefix: str, depth: int) -> Iterator[tuple[str, StoredTensor]]:
    """Yield every tensor attribute in the tree of stand-ins, under its dotted name."""
    if not isinstance(node, ScriptModule):
        return
    if depth > _DEEPEST:
        raise InputError(
            "the modules of the archive are nested too deep, or contain themselves; "
            "use other weights"
        )
    for name, value in node.attributes.items():
        if isinstance(value, StoredTensor):
            yield prefix + name, value
        else:
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)
