"""Decode the bytes of a checkpoint: tensors and plain values only; nothing in a file is executed."""

import argparse
import datetime
import io
import pathlib
import pickletools
import re
import struct
import types
import warnings
import zipfile
from contextlib import suppress

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from utils.errors import UserError

# Classes of plain values that training codes save with the weights, in addition to those that weights_only accepts.
PLAIN = [argparse.Namespace, types.SimpleNamespace, list, dict, int, float, frozenset, range]
PLAIN += [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
PLAIN += [np.dtype, np.ndarray, torch.torch_version.TorchVersion]
PLAIN += [kind for kind in vars(np.dtypes).values() if isinstance(kind, type) and kind is not np.dtypes.ObjectDType]
PLAIN += [(lambda *_: {}, "collections.defaultdict"), (lambda *_: [], "collections.deque")]
for module in ("pathlib", "pathlib._local"):  # a path of any system; it opens no file
    for system in ("Posix", "Windows", "PurePosix", "PureWindows"):
        PLAIN += [(pathlib.PurePath, f"{module}.{system}Path")]
for module in ("numpy._core", "numpy.core"):  # the names of NumPy 2 and 1
    PLAIN += [(np._core.multiarray.scalar, f"{module}.multiarray.scalar")]
    PLAIN += [(np._core.multiarray._reconstruct, f"{module}.multiarray._reconstruct")]
    PLAIN += [(np._core.numeric._frombuffer, f"{module}.numeric._frombuffer")]

ARCHIVE = "an archive, not a checkpoint; unpack it, or give the checkpoint itself"
# First bytes of other files, in lower case.
OTHER_FILES = {
    (b"<!doctype", b"<html", b"<?xml"): "a web page, not a checkpoint; open the download link in a browser",
    (b"version https://git-lfs",): "a git-lfs pointer, not a checkpoint; run git lfs pull in its repository",
    (b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"7z\xbc\xaf", b"rar!", b"ustar"): ARCHIVE,
}
MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before PyTorch 1.6
# Opcodes of protocol 4 -> what replaces them in protocol 2: sets become lists or tuples.
REPLACED = {"PROTO": b"", "FRAME": b"", "EMPTY_SET": b"]", "ADDITEMS": b"e", "FROZENSET": b"t"}


def decode(data: bytes, path: object) -> object:
    """Return the content of a file written by torch.save or safetensors; tensors are on the CPU.

    Raises UserError that names ``path`` if it is not a checkpoint, is damaged, or contains more than data.
    """
    if problem := _other_file(data):
        raise UserError(f"{path}: {problem}")
    try:
        if data[8:9] == b"{" or str(path).endswith(".safetensors"):
            return load_safetensors(data)
        with warnings.catch_warnings(), torch.serialization.safe_globals(PLAIN):
            warnings.simplefilter("ignore")  # the file is either loaded or refused with our message
            file = io.BytesIO(_in_protocol_2(data))
            return torch.load(file, map_location="cpu", weights_only=True, encoding="latin1")  # bytes of Python 2
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        raise UserError(f"{path}: {_explain(error, data)}") from error


def _other_file(data: bytes) -> str | None:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty; copy or download it again"
    if data.startswith(b"PK"):
        with suppress(zipfile.BadZipFile):
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
            return None if any(name.endswith("data.pkl") for name in names) else ARCHIVE
    head = data[257:262] if data[257:262] == b"ustar" else head  # tar begins with the name of a file
    return next((text for starts, text in OTHER_FILES.items() if head.startswith(starts)), None)


def _explain(error: Exception, data: bytes) -> str:
    resave = "which is refused; if you trust the file, save only its state dict"
    code = re.search(r"GLOBAL ([\w.]+)|got <class '([\w.]+)'", str(error))
    if code:
        return f"loading it would execute code ({code[1] or code[2]}), {resave}"
    if "TorchScript" in str(error):
        return f"a TorchScript program, {resave}"
    if data.startswith(b"\x80") and MAGIC.to_bytes(10, "little") not in data[:64]:
        return f"a pickle that torch.save did not write, {resave} with torch.save"
    if isinstance(error, SafetensorError | EOFError) or data.startswith((b"PK", b"\x80")):
        return "truncated, damaged or not written by PyTorch; copy or download it again"
    return "not a PyTorch checkpoint; give a file written by torch.save or safetensors"


def _in_protocol_2(data: bytes) -> bytes:
    """Return a file of torch.save with its pickles in protocol 2, the only one that ``weights_only`` decodes."""
    if (data[:1] == b"\x80" and data[1] > 2) or data.startswith(b"L%dL" % MAGIC):  # five pickles, then the tensors
        file = io.BytesIO(data)
        return b"".join([_downgrade(file) for _ in range(5)]) + file.read()
    if not data.startswith(b"PK"):
        return data
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        for info in source.infolist():
            info.CRC = info.CRC or None  # 0 if PyTorch was set to write no checksums
            source.read(info)  # raises BadZipFile for a wrong checksum, which torch.load does not verify
        (name,) = (name for name in source.namelist() if name.endswith("data.pkl"))
        if source.read(name)[:2] == b"\x80\x02":
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
    out, memo, text = [b"\x80\x02"], {}, None  # memo: a string, which is written again where it is used, or None
    for (opcode, value, position), end in zip(opcodes, ends, strict=True):
        name = opcode.name
        if name == "MEMOIZE" or "PUT" in name:
            key = len(memo) if name == "MEMOIZE" else int(value)
            memo[key] = text
            if text is None:
                out.append(b"r" + struct.pack("<I", key))
            continue
        text = memo[int(value)] if "GET" in name else value if "UNICODE" in name else None
        if text is not None:
            out.append(_text(text))
        elif "GET" in name:
            out.append(b"j" + struct.pack("<I", int(value)))
        elif isinstance(value, bool):  # INT of protocol 1, as text
            out.append(b"\x88" if value else b"\x89")
        elif name in ("INT", "LONG"):
            number = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            out.append(b"\x8a" + bytes([len(number)]) + number)
        elif name == "STACK_GLOBAL":  # its module and its name are the last two strings
            out[-2:] = [b"c" + b"\n".join(part[5:] for part in out[-2:]) + b"\n"]
        elif "BYTES" in name or name == "BYTEARRAY8":
            out.append(b"c_codecs\nencode\n" + _text(bytes(value).decode("latin1")) + _text("latin1") + b"\x86R")
        else:
            out.append(REPLACED.get(name, raw[position:end]))
    return b"".join(out)


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded
