"""Decode the bytes of a checkpoint: tensors and plain values only; nothing in a file is executed."""

import argparse
import collections
import datetime
import io
import pathlib
import pickletools
import re
import struct
import types
import warnings
import zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from utils.errors import UserError

# Besides what weights_only accepts: classes of plain values that training codes save beside the weights.
PLAIN = [argparse.Namespace, types.SimpleNamespace, list, dict, int, float, frozenset]
PLAIN += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
PLAIN += [np.dtype, np.ndarray, torch.torch_version.TorchVersion]
PLAIN += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and kind is not np.dtypes.ObjectDType]
KINDS = ("Posix", "Windows", "Pure", "PurePosix", "PureWindows")
PATHS = [f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in KINDS]
PLAIN += [(pathlib.PurePath, name) for name in PATHS]  # a path of any system; it opens no file
# Kinds of dict, without what is special about them.
PLAIN += [(lambda *_: {}, "collections.defaultdict")]
PLAIN += [
    (collections.OrderedDict, name) for name in ("easydict.EasyDict", "addict.addict.Dict", "yacs.config.CfgNode")
]
for module in ("numpy._core", "numpy.core"):  # the names of NumPy 2 and 1
    PLAIN += [(np._core.multiarray.scalar, f"{module}.multiarray.scalar")]
    PLAIN += [(np._core.multiarray._reconstruct, f"{module}.multiarray._reconstruct")]
    PLAIN += [(np._core.numeric._frombuffer, f"{module}.numeric._frombuffer")]

ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "RAR"}
MARK_CLOSERS = {"ADDITEMS", "APPENDS", "DICT", "FROZENSET", "LIST", "POP_MARK", "SETITEMS", "TUPLE"}


def decode(data: bytes, path: object) -> object:
    """Return the content of a file of torch.save or safetensors; tensors are on the CPU.

    Raises UserError that names ``path`` if it is another file, damaged, or contains more than data.
    """
    head = data[:512].lstrip()
    if not head:
        raise UserError(f"{path}: the file is empty; copy or download it again")
    if head.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path}: a web page, not a checkpoint; open the download link in a browser")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-lfs pointer, not a checkpoint; run git lfs pull in its repository")
    archive = next((name for magic, name in ARCHIVES.items() if data.startswith(magic)), None)
    if data[257:262] == b"ustar":
        archive = "tar"
    if data.startswith(b"PK"):
        if not zipfile.is_zipfile(io.BytesIO(data)):
            raise UserError(f"{path}: truncated; copy or download it again")
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        archive = None if any(name.endswith(("data.pkl", "constants.pkl")) for name in names) else "zip"
    if archive:
        raise UserError(f"{path}: a {archive} archive, not a checkpoint; unpack it and name the file in it")
    try:
        if data[8:9] == b"{" or str(path).endswith(".safetensors"):
            return load_safetensors(data)
        with warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN):
            warnings.simplefilter("ignore")  # the file is either loaded or refused with our message
            return torch.load(io.BytesIO(_in_protocol_2(data)), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        raise UserError(f"{path}: {_explain(error, head)}") from error


def _explain(error: Exception, head: bytes) -> str:
    resave = "which is refused; if you trust the file, save only its state dict"
    code = re.search(r"GLOBAL ([\w.]+)", str(error))
    if code:
        return f"loading it would execute code ({code[1]}), {resave}"
    if "TorchScript" in str(error):
        return f"a TorchScript program, {resave}"
    if isinstance(error, SafetensorError | EOFError) or head.startswith((b"PK", b"\x80")):
        return "truncated, damaged or not written by PyTorch; copy or download it again"
    return "not a PyTorch checkpoint; name a file written by torch.save or safetensors"


def _in_protocol_2(data: bytes) -> bytes:
    """Return a file of torch.save with its pickles in protocol 2, the only one that ``weights_only`` decodes."""
    if data[:1] == b"\x80" and data[1] > 2:  # the format before PyTorch 1.6: five pickles, then the tensors
        file = io.BytesIO(data)
        return b"".join([_downgrade(file) for _ in range(5)]) + file.read()
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        (name,) = (name for name in source.namelist() if name.endswith("data.pkl"))
        with source.open(name) as pickled:
            if pickled.read(2)[1:] <= b"\x02":
                return data
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as target:
            for each in source.namelist():
                content = source.read(each)
                target.writestr(each, _downgrade(io.BytesIO(content)) if each == name else content)
    return copy.getvalue()


def _downgrade(file: io.BytesIO) -> bytes:
    """Rewrite the pickle at the position of ``file`` in protocol 2, opcode by opcode; nothing is executed."""
    opcodes, raw = list(pickletools.genops(file)), file.getbuffer()
    ends = [position for _, _, position in opcodes[1:]] + [file.tell()]
    closers = _mark_closers([opcode.name for opcode, _, _ in opcodes])
    out, texts, memo, text = [b"\x80\x02"], {}, 0, None  # texts: memoized strings, which are written again where used
    for number, ((opcode, value, position), end) in enumerate(zip(opcodes, ends, strict=True)):
        name = opcode.name
        if "GET" in name and int(value) in texts:
            name, value = "BINUNICODE", texts[int(value)]
        if name in ("PROTO", "FRAME"):
            continue
        if name == "MEMOIZE" or "PUT" in name:
            key = memo if name == "MEMOIZE" else int(value)
            memo += 1
            if text is None:
                out.append(b"r" + struct.pack("<I", key))
            else:
                texts[key] = text
            continue
        text = value if name.endswith(("UNICODE", "UNICODE8")) else None
        if text is not None:
            out.append(_text(text))
        elif "GET" in name:
            out.append(b"j" + struct.pack("<I", int(value)))
        elif name == "STACK_GLOBAL":
            out[-2:] = [b"c" + b"\n".join(part[5:] for part in out[-2:]) + b"\n"]
        elif "BYTES" in name or name == "BYTEARRAY8":
            out.append(b"c_codecs\nencode\n" + _text(bytes(value).decode("latin1")) + _text("latin1") + b"\x86R")
        elif name == "EMPTY_SET":
            following = number + 1 + (opcodes[number + 1][0].name == "MEMOIZE")
            out.append(b"cbuiltins\nset\n" + (b"]" if closers.get(following) == "ADDITEMS" else b")R"))
        else:
            out.append(b"e\x85R" if name == "ADDITEMS" else raw[position:end])
    return b"".join(out)


def _mark_closers(names: list[str]) -> dict[int, str]:
    """Map the position of each MARK to the name of the opcode that consumes it."""
    marks, closers = [], {}
    for position, name in enumerate(names):
        if name == "MARK":
            marks.append(position)
        elif name in MARK_CLOSERS and marks:
            closers[marks.pop()] = name
    return closers


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded
