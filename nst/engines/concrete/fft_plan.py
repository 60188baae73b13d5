"""The same FFT in every process, so that a task run again gives the same bits.

Concrete's FFT is one of eight algorithms. Each process measures them when it first needs one and
keeps the fastest; two are equally fast, so processes differ, and with them the last bits of every
ciphertext. Approximate rounding turns that into levels: of a picture computed by another process a
quarter of the levels were one off. All are right, but a retried task, a resumed job or a second
driver would not give the picture that an undisturbed run gives.

Concrete has no setting for it. What it measures with is the C library's clock, so for the moment of
planning that one function is replaced, inside Concrete's library only, by a clock on which the
chosen algorithm is the fastest. Plans are kept per process and size, so they last. Processors
with other vector instructions may still differ from each other in the last bits.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import concrete.compiler  # noqa: F401  # loads the library

LIBRARY = "libConcretelangRuntime"
CLOCK = b"clock_gettime"
ALGORITHMS = ("Dif2", "Dit2", "Dif4", "Dit4", "Dif8", "Dit8", "Dif16", "Dit16")
"""In the order in which Concrete measures them."""
ALGORITHM = "Dif8"
"""One of the two that processes choose by themselves."""
SIZES = tuple(2**power for power in range(8, 15))
"""Polynomial sizes that Concrete's optimizer may choose."""
FASTEST, OTHERS = 10_000_000, 20_000_000
"""Nanoseconds that a measurement seems to take: at least what Concrete wants to see in one go."""
PAGE = 4096
READ_WRITE = 3
_RELOCATIONS, _DYNAMIC_SYMBOLS = 4, 11


def fix_fft_plan(algorithm: str = ALGORITHM) -> bool:
    """Have this process plan its FFTs with one algorithm; sizes planned before stay as they are.

    Returns:
        Whether that could be done. If not, on another system or with another Concrete, everything
        works, but processes differ in the last bits.
    """
    try:
        path, base = _loaded_library()
        slots = [base + offset for offset in _imports(path.read_bytes(), CLOCK)]
        library = ctypes.CDLL(str(path))
        plan, forget = (
            library.concrete_cpu_construct_concrete_fft,
            library.concrete_cpu_destroy_concrete_fft,
        )
        size = ctypes.c_size_t.in_dll(library, "CONCRETE_FFT_SIZE").value
    except (OSError, AttributeError, ValueError, StopIteration, struct.error):
        return False
    if not slots:
        return False
    handle = ctypes.create_string_buffer(size)
    for polynomial_size in SIZES:
        with _replaced(slots, _clock(ALGORITHMS.index(algorithm))):
            plan(handle, ctypes.c_size_t(polynomial_size))
        forget(handle)
    return True


_Clock = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64))


def _clock(fastest: int) -> ctypes._FuncPointer:
    """A `clock_gettime` that is asked twice per measurement, before and after."""
    asked = now = 0

    def tell(_: int, answer: ctypes._Pointer[ctypes.c_int64]) -> int:
        nonlocal asked, now
        if asked % 2:
            now += FASTEST if asked // 2 % len(ALGORITHMS) == fastest else OTHERS
        asked += 1
        answer[0], answer[1] = divmod(now, 10**9)
        return 0

    return _Clock(tell)


@contextmanager
def _replaced(slots: list[int], function: ctypes._FuncPointer) -> Iterator[None]:
    """Function pointers in memory, replaced for a while."""
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    address = ctypes.cast(function, ctypes.c_void_p).value
    pointers = []
    for slot in slots:
        if protect(ctypes.c_void_p(slot & -PAGE), ctypes.c_size_t(PAGE), READ_WRITE):
            raise OSError(ctypes.get_errno(), "mprotect")
        pointers.append(ctypes.cast(slot, ctypes.POINTER(ctypes.c_uint64)))
    before = [pointer[0] for pointer in pointers]
    try:
        for pointer in pointers:
            pointer[0] = address
        yield
    finally:
        for pointer, value in zip(pointers, before, strict=True):
            pointer[0] = value


def _loaded_library() -> tuple[Path, int]:
    """File of Concrete's library and the address at which this process has it."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    line = next(line for line in maps if LIBRARY in line)
    return Path(line[line.index("/") :]), int(line.partition("-")[0], 16)


def _imports(elf: bytes, name: bytes) -> list[int]:
    """Where a 64-bit ELF library keeps pointers to a function of another, from its beginning."""
    start, width, count = (
        *struct.unpack_from("<Q", elf, 0x28),
        *struct.unpack_from("<HH", elf, 0x3A),
    )
    # Name, type, flags, address, offset, size, link, information, alignment, entry size.
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + i * width) for i in range(count)]
    found = []
    for section in sections:
        symbols = sections[section[6]]
        if section[1] != _RELOCATIONS or symbols[1] != _DYNAMIC_SYMBOLS:
            continue
        names = sections[symbols[6]][4]
        for entry in range(section[4], section[4] + section[5], 24):
            offset, information = struct.unpack_from("<QQ", elf, entry)
            (at,) = struct.unpack_from("<I", elf, symbols[4] + 24 * (information >> 32))
            if elf.startswith(name + b"\0", names + at):
                found.append(offset)
    return found
