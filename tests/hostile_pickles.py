"""Pickles that run something or ask for memory, and the files that can carry them."""

import io
import pickle
import struct
import tarfile

import torch

CODE = 0xF0  # of os.mkdir, where a process has registered it for pickle's EXT
HUGE = 1 << 40
PARTIAL, MKDIR = b"cfunctools\npartial\n", b"cos\nmkdir\n"


def text(value):
    return b"V" + str(value).encode() + b"\n"


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


def word(value):
    """Return text as BINUNICODE, which weights_only=True knows and V not."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


OPCODES = {  # each makes the folder that it is given, where pickle reads it
    "GLOBAL and REDUCE": lambda c: MKDIR + b"(" + text(c) + b"tR.",
    "STACK_GLOBAL": lambda c: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(" + text(c) + b"tR.",
    "INST": lambda c: b"(" + text(c) + b"ios\nmkdir\n.",
    "OBJ": lambda c: b"(" + MKDIR + text(c) + b"o.",
    "NEWOBJ": lambda c: b"\x80\x02" + PARTIAL + b"(" + MKDIR + text(c) + b"t\x81)R.",
    "NEWOBJ_EX": lambda c: b"\x80\x04" + PARTIAL + b"(" + MKDIR + text(c) + b"t}\x92)R.",
    "BUILD": lambda c: b"\x80\x02" + PARTIAL + b"(cos\ngetpid\nt\x81(" + MKDIR + b"(" + text(c) + b"t}Ntb)R.",
    "EXT": lambda c: b"\x80\x02\x82" + bytes([CODE]) + b"(" + text(c) + b"tR.",
    "eval": lambda c: b"cbuiltins\neval\n(V__import__('os').mkdir('" + str(c).encode() + b"')\ntR.",
    "getattr": lambda c: b"cbuiltins\ngetattr\n(cshutil\nos\nVmkdir\ntR(" + text(c) + b"tR.",
    "APPEND": lambda c: b"(l" + MKDIR + b"(" + text(c) + b"tRa.",
}


def archive(path, pickled, **records):
    """Write an archive as torch does."""
    writer = torch._C.PyTorchFileWriter(str(path))
    for name, data in {"data.pkl": pickled, "byteorder": b"little", **records}.items():
        writer.write_record(name, data, len(data))
    writer.write_end_of_file()


def old(path, pickled):
    """Write a file as torch did before 1.6."""
    head = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(head + pickled + pickle.dumps([], 2))


def tar(path, pickled):
    """Write a file as torch did before 0.1.10."""
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            file.addfile(member, io.BytesIO(pickled))


def stored(count=1, size=(1,), stride=(1,), key="0"):
    """Return the opcodes of a tensor with these claims."""
    sides, steps = (b"(" + b"".join(map(number, given)) + b"t" for given in (size, stride))
    claim = b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word(key) + word("cpu") + number(count)
    rest = b"tQK\x00" + sides + steps + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + claim + rest


def state(*opcodes, end=b""):
    """Return a checkpoint's pickle whose one entry these opcodes make."""
    return b"\x80\x02}" + word("state_dict") + b"}" + word("network.x") + b"".join(opcodes) + b"ss" + end + b"."


def called(name, *opcodes):
    module, function = name.rsplit(".", 1)
    return state(f"c{module}\n{function}\n(".encode(), *opcodes, b"tR")


def nested(times):
    """Return the opcodes of a list of ten times a list of ten times ..."""
    return state(b"](]q\x00", *(b"](" + b"h\x00" * 10 + b"eq\x00" for _ in range(times)), b"e")  # torch has no POP


MANY = stored(1, (1 << 30,), (0,))
REFUSED = "is refused|is not a checkpoint"
DEMANDS = {  # of memory and time, which weights_only=True does not bound; and what the line says
    "bytearray": (called("builtins.bytearray", number(16 << 30)), "references builtins.bytearray"),
    "encoded": (state(b"c_codecs\nencode\n(" * 40, b"Vx\nVlatin1\ntR", b"Vhex\ntR" * 39), "references _codecs.encode"),
    "set of views": (called("builtins.set", MANY), "references builtins.set"),
    "dictionary of views": (called("collections.OrderedDict", MANY), "other arguments than torch"),
    "dictionary of a list of views": (called("collections.OrderedDict", b"](" + MANY + b"e"), "is refused|is not a"),
    "attributes of views": (state(b"ccollections\nOrderedDict\n)R", MANY, b"b"), "sets more than the attributes"),
    "stride 0": (state(MANY), "larger than its 4 bytes"),
    "storage": (state(stored(HUGE)), "is not a checkpoint"),
    "legacy constructor": (called("torch.FloatTensor", number(8 << 30)), "references torch.FloatTensor"),
    "storage constructor": (
        called("torch.storage.UntypedStorage", number(8 << 30)),
        "references torch.storage",
    ),
    "many storages": (state(b"]", *(stored(64, key=str(n)) + b"a" for n in range(400))), "is not a checkpoint"),
    "laughs": (nested(40), "expand far beyond the file's size"),
    "deep": (state(b"]" * 100_000, b"a" * 99_999), "is not a checkpoint"),
    "memo": (state(b"N", end=b"r\xff\xff\xff\x7f"), "not a model of this package"),
    "long string": (b"\x80\x02X\xff\xff\xff\x7f.", "is damaged|is not a checkpoint"),
    "set_": (state(stored(), number(HUGE), b"\x85b"), "sets more than the attributes"),
    "persistent": (b"\x80\x02Pos.system\n.", "is refused"),
    "cycle": (state(b"]q\x00h\x00a"), "is damaged|is not a checkpoint"),
}
