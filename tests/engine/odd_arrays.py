"""Arrays that are not what their memory says, as makers: of some the values are known, others have none."""

import os
import tempfile

import numpy as np
import torch

V = [1.0, 2.0, 3.5, 4.0]  # what every array of VALUES holds, in any shape
MASK = [True, False, True, True]


class Unit(np.ndarray):
    """Its numbers mean something else, depending on what nobody but it knows."""


class Scaled(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        raise TypeError("nobody asks this tensor")


class Wrapper(torch.Tensor):
    """Has no memory of its own."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, arguments=(), keywords=None):
        if function is torch.ops.aten.detach.default:  # what a parameter asks for
            return cls(arguments[0].inner)
        raise NotImplementedError(str(function))


class Codes(Wrapper):
    """As packages for quantization make them."""

    def dequantize(self):
        return self.inner


class Sharded(Wrapper):
    def full_tensor(self):
        return self.inner


class LooksLikeOne:
    device, shape, dtype = "cpu", (4,), "float32"

    def data_ptr(self):
        return 16


def tensor(dtype=torch.float32):
    return torch.tensor(V, dtype=dtype)


def shifted(dtype, offset):
    """The values behind a byte offset at which no element may lie."""
    return np.frombuffer(bytes(offset) + np.array(V, dtype).tobytes(), dtype, offset=offset)


def unaligned():
    return torch.frombuffer(bytearray(b"\0" + np.array(V, "<f4").tobytes()), dtype=torch.float32, offset=1)


def read_only():
    array = np.array(V, np.float32)
    array.flags.writeable = False
    return array


def memory_map(mode="r"):
    handle, path = tempfile.mkstemp()
    os.write(handle, np.array(V, np.float32).tobytes())
    os.close(handle)
    mapped = np.memmap(path, np.float32, mode)
    os.unlink(path)
    return mapped


def inference(make):
    with torch.inference_mode():
        return make()


def without_storage(nbytes, step=1):
    made = torch.arange(100.0)[::step]
    made.untyped_storage().resize_(nbytes)
    return made


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.empty(4)


def functional():
    return torch._to_functional_tensor(tensor())


NUMPY_VALUES = {
    **{f"big-endian {kind}": (lambda kind=kind: np.array(V, f">{kind}")) for kind in ("f2", "f4", "f8")},
    "big-endian, strided": lambda: np.array([V, V], ">f4").T[:, 1],
    "big-endian scalar": lambda: np.array(V[2], ">f8"),
    "reversed": lambda: np.array(V[::-1], np.float32)[::-1],
    "read-only": read_only,
    "memory map": memory_map,
    "matrix": lambda: np.array([V], np.float32).view(np.matrix),
    "recarray without fields": lambda: np.array(V, np.float32).view(np.recarray),
    "unaligned": lambda: shifted("<f4", 1),
    "unaligned, big-endian": lambda: shifted(">f4", 3),
    "broadcast": lambda: np.broadcast_to(np.array(V, np.float32), (3, 4)),
    "scalar of numpy": lambda: np.float32(V[2]),
    "python's float, by way of numpy": lambda: np.float64(V[2]),
    "no dimension": lambda: np.array(V[2], np.float16),
}
TORCH_VALUES = {
    "lazily negated": lambda: torch._neg_view(-tensor()),
    "imaginary part of a conjugate": lambda: torch.complex(torch.zeros(4), -tensor()).conj().imag,
    "negated and transposed": lambda: torch._neg_view(-tensor().repeat(3, 1)).T,
    "expanded": lambda: tensor().expand(3, 4),
    "expanded scalar": lambda: torch.tensor(V[2]).expand(2, 5),
    "parameter": lambda: torch.nn.Parameter(tensor()),
    "requires grad, no leaf": lambda: torch.nn.Parameter(tensor()) * 1,
    "made in inference mode": lambda: inference(tensor),
    "unaligned": unaligned,
    "reaches the end of its storage": lambda: torch.tensor([0, *V])[1:],
    "overlaps with itself": lambda: torch.full((4,), V[2]).as_strided((3, 2), (1, 1)),
    "no dimension": lambda: torch.tensor(V[2]),
    "bfloat16": lambda: tensor(torch.bfloat16),
    "float16": lambda: tensor(torch.float16),
    "float64": lambda: tensor(torch.float64),
    "no elements": lambda: torch.empty(0, 3),
    "no elements, no storage": lambda: without_storage(0)[:0],
}
NUMPY_REFUSED = {
    "masked": (lambda: np.ma.masked_array(np.array(V, np.float32), MASK), r"type MaskedArray.* its filled\(\) returns"),
    "masked without a mask": (lambda: np.ma.masked_array(np.array(V, np.float32)), r"type MaskedArray"),
    "subclass": (lambda: np.array(V, np.float32).view(Unit), "type Unit.* give a plain ndarray with its values"),
    "structured": (lambda: np.zeros(4, [("a", "f4")]), "which cannot be merged; convert it first"),
    "recarray": (lambda: np.rec.array([(1.0,)], dtype=[("a", "f4")]), "which cannot be merged"),
    "object": (lambda: np.array(V, object), "dtype object, which cannot be merged"),
    "text": (lambda: np.array(["a"]), "dtype <U1, which cannot be merged"),
    "dates": (lambda: np.array([1], "M8[s]"), r"dtype datetime64\[s\], which"),
    "bytes": (lambda: np.zeros(4, "V4"), r"dtype \|V4, which"),
    "complex128": (lambda: np.array(V, complex), "complex128, which"),
    "longdouble": (lambda: np.array(V, np.longdouble), r"float\d+, which"),
    "list": (lambda: V, "is a list; give torch tensors or numpy arrays"),
    "tuple": (lambda: tuple(V), "is a tuple"),
    "float": (lambda: 3.0, "is a float"),
    "none": (lambda: None, "is a NoneType"),
    "text of python": (lambda: "w", "is a str"),
    "memoryview": (lambda: memoryview(np.array(V, np.float32)), "is a memoryview"),
    "storage": (lambda: tensor().untyped_storage(), "is a UntypedStorage"),
    "looks like one": (LooksLikeOne, "is a LooksLikeOne"),
}
TORCH_REFUSED = {
    "coo": (lambda: tensor().to_sparse(), r"layout sparse_coo; call to_dense\(\)"),
    "csr": (lambda: torch.eye(4).to_sparse_csr(), "layout sparse_csr"),
    "csc": (lambda: torch.eye(4).to_sparse_csc(), "layout sparse_csc"),
    "bsr": (lambda: torch.eye(4).to_sparse_bsr((2, 2)), "layout sparse_bsr"),
    "nested": (lambda: torch.nested.nested_tensor([tensor(), tensor()[:2]]), "is nested; give its parts"),
    "jagged": (lambda: torch.nested.nested_tensor([tensor()], layout=torch.jagged), "type NestedTensor"),
    "masked": (lambda: torch.masked.masked_tensor(tensor(), torch.tensor(MASK)), r"its to_tensor\(\) returns"),
    "meta": (lambda: torch.empty(4, device="meta"), "on the device meta and holds no data; load the model first"),
    "fake": (fake, "type FakeTensor"),
    "functional": (functional, "has no memory; merge outside of that function"),
    "quantized": (lambda: torch.quantize_per_tensor(tensor(), 0.1, 0, torch.qint8), r"quantized \(qint8\); call deq"),
    "storage of nothing": (lambda: without_storage(0), "needs 400 bytes, but its storage has 0; gather or load"),
    "storage too small": (lambda: without_storage(396), "needs 400 bytes, but its storage has 396"),
    "strides beyond the storage": (lambda: without_storage(396, step=11), "needs 400 bytes, but its storage has 396"),
    "subclass": (lambda: tensor().as_subclass(Scaled), "type Scaled.* give a plain Tensor with its values"),
    "wrapper": (lambda: Wrapper(tensor()), "type Wrapper"),
    "codes": (lambda: Codes(tensor()), r"type Codes.* give what its dequantize\(\) returns"),
    "parameter of codes": (lambda: torch.nn.Parameter(Codes(tensor()), requires_grad=False), r"dequantize\(\) returns"),
    "sharded": (lambda: Sharded(tensor()), r"give what its full_tensor\(\) returns"),
    "no shape yet": (torch.nn.UninitializedParameter, "type UninitializedParameter"),
    "complex32": (lambda: tensor().to(torch.complex32), "complex32, which cannot be merged"),
    "complex128": (lambda: tensor().to(torch.complex128), "complex128, which cannot be merged"),
    "float8_e4m3fnuz": (lambda: tensor().to(torch.float8_e4m3fnuz), "fnuz, which cannot be merged"),
    "bits": (lambda: torch.empty(4, dtype=torch.bits8), "bits8, which cannot be merged"),
    "uint4": (lambda: torch.empty(4, dtype=torch.uint4), "uint4, which cannot be merged"),
}
if hasattr(torch.nn, "Buffer"):
    TORCH_VALUES["buffer"] = lambda: torch.nn.Buffer(tensor())
if hasattr(torch.Tensor, "to_mkldnn") and torch.backends.mkldnn.is_available():
    TORCH_REFUSED["mkldnn"] = (lambda: tensor().to_mkldnn(), r"layout _mkldnn; call to_dense\(\)")
