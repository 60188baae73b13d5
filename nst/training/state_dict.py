"""State dicts that `torch.save` wrote, read without PyTorch: tensors and nothing else.

`torch.load(weights_only=True)` of PyTorch 2.3 runs code of a file made for it (CVE-2025-32434).
"""

from __future__ import annotations

import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

KINDS = {
    "HalfStorage": "<f2", "FloatStorage": "<f4", "DoubleStorage": "<f8", "IntStorage": "<i4",
    "LongStorage": "<i8",
}  # fmt: skip
"""NumPy's names of numbers by PyTorch's."""
LEGACY = (0x1950A86A20F9469CFC6C, 1001)
"""What files of PyTorch before 1.6 begin with, such as those of torchvision: number and version."""
REFUSED = "holds something else than tensors and was not loaded"


class _Storage(NamedTuple):
    """Numbers in a file."""

    kind: str
    key: str
    length: int


class _Tensor(NamedTuple):
    """A view of them; all are counted in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, numbers: NDArray[np.generic]) -> NDArray[np.generic]:
        """Its elements; raises ValueError if they are not all there."""
        words = (self.offset, *self.shape, *self.strides)
        if not all(type(w) is int and w >= 0 for w in words) or len(self.shape) != len(
            self.strides
        ):
            raise ValueError("no shape")
        size = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if size > numbers.size or (size and last >= numbers.size):
            raise ValueError("too few numbers")
        strides = tuple(s * numbers.itemsize for s in self.strides)
        start = numbers[self.offset :]
        return np.array(np.lib.stride_tricks.as_strided(start, self.shape, strides))


class _Rebuild:
    """Stands for PyTorch's function; without attributes that a pickle could set."""

    __slots__ = ()

    def __call__(
        self,
        storage: object,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        *_: object,
    ) -> _Tensor:
        if not isinstance(storage, _Storage):
            raise pickle.UnpicklingError(REFUSED)
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Unpickler(pickle.Unpickler):
    """Knows what a state dict of tensors needs, and calls nothing else."""

    def find_class(self, module: str, name: str) -> object:
        """The stand-ins; raises UnpicklingError for whatever else a file asks for."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Rebuild()
        if module == "torch" and name in KINDS:
            return KINDS[name]
        raise pickle.UnpicklingError(REFUSED)

    def persistent_load(self, pid: tuple[object, ...]) -> _Storage:
        """Where a file's numbers are."""
        what, kind, key, _, count, *rest = pid
        if what != "storage" or any(r is not None for r in rest) or kind not in KINDS.values():
            raise pickle.UnpicklingError(REFUSED)
        if type(key) is not str or type(count) is not int or count < 0:
            raise pickle.UnpicklingError(REFUSED)
        return _Storage(str(kind), key, count)


def read_state_dict(path: Path) -> dict[str, NDArray[np.generic]]:
    """All tensors of a file, by name.

    Raises:
        ValueError: if there is anything else in it, TorchScript say, or it is damaged.
        OSError: if it cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path)
        with path.open("rb") as file:
            return _read_legacy(file)
    except OSError:
        raise
    except Exception as error:  # pickle and zipfile raise nearly anything
        raise ValueError(str(error)) from error


def _read_zip(path: Path) -> dict[str, NDArray[np.generic]]:
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            _refuse("is TorchScript, a program, and was not loaded")
        with archive.open(names["data.pkl"]) as file:
            tensors = _tensors(_Unpickler(file).load())
        out = {}
        for name, tensor in tensors.items():
            entry = archive.getinfo(names[f"data/{tensor.storage.key}"])
            size = tensor.storage.length * np.dtype(tensor.storage.kind).itemsize
            if entry.file_size != size or entry.compress_type != zipfile.ZIP_STORED:
                _refuse("is damaged")
            out[name] = tensor.of(np.frombuffer(archive.read(entry), tensor.storage.kind))
        return out


def _read_legacy(file: BinaryIO) -> dict[str, NDArray[np.generic]]:
    if tuple(_Unpickler(file).load() for _ in LEGACY) != LEGACY:
        _refuse("is no file of torch.save")
    _Unpickler(file).load()  # of the machine
    tensors = _tensors(_Unpickler(file).load())
    kinds = {tensor.storage.key: tensor.storage for tensor in tensors.values()}
    numbers = {}
    for key in _Unpickler(file).load():
        storage = kinds[key]
        size = storage.length * np.dtype(storage.kind).itemsize
        if int.from_bytes(file.read(8), "little") != storage.length:
            _refuse("is damaged")
        numbers[key] = np.frombuffer(file.read(size), storage.kind, storage.length)
    return {name: tensor.of(numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def _tensors(state: object) -> dict[str, _Tensor]:
    if not isinstance(state, dict):
        _refuse(REFUSED)
    if not all(type(k) is str and isinstance(v, _Tensor) for k, v in state.items()):
        _refuse(REFUSED)
    return dict(state)


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)
