"""Decode the bytes of a checkpoint: tensors and plain values only; nothing in a file is executed."""

import argparse
import datetime
import io
import pathlib
import re
import types
import warnings
import zipfile
from contextlib import suppress

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from models.pickle_protocol import MAGIC, PROTOCOL_0, in_protocol_2
from utils.errors import UserError
from utils.files import LFS_HINT, LFS_POINTER

# Classes of plain values that training codes save with the weights, in addition to those that weights_only accepts.
PLAIN = [argparse.Namespace, types.SimpleNamespace, list, dict, int, float, frozenset, range]
PLAIN += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
PLAIN += [np.dtype, np.ndarray, torch.torch_version.TorchVersion]
PLAIN += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and kind is not np.dtypes.ObjectDType]
PLAIN += [(lambda *_: {}, "collections.defaultdict"), (lambda *_: [], "collections.deque")]
for system in ("Posix", "Windows", "PurePosix", "PureWindows"):  # a path of any system; it opens no file
    PLAIN += [(pathlib.PurePath, f"{module}.{system}Path") for module in ("pathlib", "pathlib._local")]
for module in ("numpy._core", "numpy.core"):  # the names of NumPy 2 and 1
    PLAIN += [(np._core.multiarray.scalar, f"{module}.multiarray.scalar")]
    PLAIN += [(np._core.multiarray._reconstruct, f"{module}.multiarray._reconstruct")]
    PLAIN += [(np._core.numeric._frombuffer, f"{module}.numeric._frombuffer")]

ARCHIVE = "an archive, not a checkpoint; unpack it, or give the checkpoint itself"
# First bytes of other files, in lower case.
OTHER_FILES = {
    (b"<!doctype", b"<html", b"<?xml"): "a web page, not a checkpoint; open the download link in a browser",
    (LFS_POINTER,): LFS_HINT,
    (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!"): ARCHIVE,
}


def decode(data: bytes, path: object) -> object:
    """Return the content of a file written by torch.save or safetensors; tensors are on the CPU.

    Raises UserError that names ``path`` if it is not a checkpoint, is damaged, or contains more than data.
    """
    if problem := _other_file(data):
        raise UserError(f"{path}: {problem}")
    try:
        if data[8:9] == b"{" or (str(path).endswith(".safetensors") and not data.startswith((b"PK", b"\x80"))):
            return load_safetensors(data)
        with warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN):
            warnings.simplefilter("ignore")  # the file is either loaded or refused with our message
            file = io.BytesIO(in_protocol_2(data))
            return torch.load(file, map_location="cpu", weights_only=True, encoding="latin1")  # bytes of Python 2
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        raise UserError(f"{path}: {_explain(error, data)}") from error


def _other_file(data: bytes) -> str | None:
    """Return what a file is that is not a checkpoint; None for a possible checkpoint."""
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty; copy or download it again"
    if data.startswith(b"PK"):
        with suppress(Exception):  # damaged; zipfile raises various exceptions
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
            return None if any(name.endswith("data.pkl") for name in names) else ARCHIVE
    if data[257:262] == b"ustar":  # tar begins with the name of a file
        return ARCHIVE
    return next((text for starts, text in OTHER_FILES.items() if head.startswith(starts)), None)


def _explain(error: Exception, data: bytes) -> str:
    """Return why a file cannot be loaded."""
    resave = "which is refused; if you trust the file, load it and save only its model.state_dict()"
    code = re.search(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'", str(error))
    if code:
        return f"loading it would execute code ({code[1] or code[2]}), {resave}"
    if str(error) == PROTOCOL_0:
        return PROTOCOL_0
    if "TorchScript" in str(error):
        return f"a TorchScript program, {resave}"
    if data.startswith(b"\x80") and MAGIC.to_bytes(10, "little") not in data[:64]:
        return f"a pickle that torch.save did not write, {resave} with torch.save"
    if isinstance(error, SafetensorError | EOFError) or data.startswith((b"PK", b"\x80")):
        return "truncated, damaged or not written by PyTorch; copy or download it again"
    return "not a PyTorch checkpoint; give a file written by torch.save or safetensors"
