"""Rewrite the pickles of torch.save in protocol 2, the only one that ``torch.load(weights_only=True)`` decodes.

Opcodes are replaced one by one; nothing is executed.
"""

import io
import pickletools
import struct
import zipfile

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the format before PyTorch 1.6
MAX_NAME = 256  # bytes of a class's or module's name
PROTOCOL_0 = "written in pickle protocol 0, which loses the tensors; save it again in the default protocol"
LEGACY_PICKLES = 5  # of that format: magic number, version, system, content, keys of the tensors that follow
CODE = {opcode.name: opcode.code.encode("latin1") for opcode in pickletools.opcodes}
PROTOCOL_2 = CODE["PROTO"] + b"\x02"
# Opcodes that torch.load does not know; sets become lists and tuples.
REPLACED = {"EMPTY_SET": CODE["EMPTY_LIST"], "ADDITEMS": CODE["APPENDS"], "FROZENSET": CODE["TUPLE"]}


def in_protocol_2(data: bytes) -> bytes:
    """Return a file of torch.save with its pickles in protocol 2.

    Raises various exceptions for a damaged file, also for a wrong checksum, which torch.load does not notice.
    """
    if data.startswith(b"PK"):
        return _zip_in_protocol_2(data)
    if data.startswith(b"L%dL" % MAGIC) or (data[:1] == CODE["PROTO"] and data[1:2] > b"\x02"):
        file = io.BytesIO(data)
        pickles = [_rewrite(file) for _ in range(LEGACY_PICKLES)]
        return b"".join(pickles) + file.read()
    return data


def _zip_in_protocol_2(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as source:
        for member in source.infolist():
            member.CRC = member.CRC or None  # 0 if PyTorch was set to write no checksums
        if damaged := source.testzip():
            raise zipfile.BadZipFile(damaged)
        (pickled,) = (name for name in source.namelist() if name.endswith("data.pkl"))
        if source.read(pickled).startswith(PROTOCOL_2):
            return data
        copy = io.BytesIO()
        with zipfile.ZipFile(copy, "w") as target:
            for name in source.namelist():
                content = source.read(name)
                target.writestr(name, _rewrite(io.BytesIO(content)) if name == pickled else content)
    return copy.getvalue()


def _rewrite(file: io.BytesIO) -> bytes:
    """Return the pickle at the position of ``file`` in protocol 2.

    Protocol 4 names a class by the last two strings on the stack, protocol 2 in the opcode itself. So that both strings
    can be removed, no short string is put into the memo: it is written again wherever the memo is read.
    """
    written = [PROTOCOL_2]
    memo: dict[int, bytes | None] = {}  # key -> the opcode that pushes this string; None for another value
    string = None  # what the last opcode pushed, if that is a short string
    for kind, value, start in pickletools.genops(file):
        name, opcode = kind.name, bytes(file.getbuffer()[start : file.tell()])
        if name in ("PROTO", "FRAME"):
            continue
        if name == "PERSID":
            raise ValueError(PROTOCOL_0)
        if name == "MEMOIZE" or "PUT" in name:
            key = len(memo) if name == "MEMOIZE" else int(value)
            memo[key] = string
            if string is None:
                written.append(CODE["LONG_BINPUT"] + struct.pack("<I", key))
            continue
        string = None
        if "UNICODE" in name:
            opcode = _string(value)
            string = opcode if len(opcode) <= MAX_NAME else None
        elif "GET" in name:
            string = memo[int(value)]
            opcode = string or CODE["LONG_BINGET"] + struct.pack("<I", int(value))
        elif name == "STACK_GLOBAL":
            attribute, module = (written.pop()[5:] for _ in range(2))  # the strings without code and length
            opcode = CODE["GLOBAL"] + module + b"\n" + attribute + b"\n"
        elif isinstance(value, bool):
            opcode = CODE["NEWTRUE"] if value else CODE["NEWFALSE"]
        elif name in ("INT", "LONG"):
            encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            opcode = CODE["LONG1"] + bytes([len(encoded)]) + encoded
        elif "BYTES" in name or name == "BYTEARRAY8":
            opcode = _bytes(value)
        else:
            opcode = REPLACED.get(name, opcode)
        written.append(opcode)
    return b"".join(written)


def _string(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return CODE["BINUNICODE"] + struct.pack("<I", len(encoded)) + encoded


def _bytes(value: bytes | bytearray) -> bytes:
    arguments = _string(value.decode("latin1")) + _string("latin1") + CODE["TUPLE2"]
    return CODE["GLOBAL"] + b"_codecs\nencode\n" + arguments + CODE["REDUCE"]  # as protocol 2 itself saves bytes
