"""Reading a pickled pandas table without running anything that it names.

A pickle is a program: it calls whatever it names. Here every name that a pickled table may use stands for
a small class of ours that only keeps what it was given; any other name is refused before it is looked up.
Neither pandas nor numpy's own reconstruction is called, so the installed versions do not matter and a
crafted array state cannot reach their C code.

Memory, measured on generated files of Kaggle's layout with 20,000 and 60,000 rows of 45x44 dies: 4.0 to
4.8 kB a row at the peak, 1.7 to 1.9 times the file, so the 811,457 rows of the 2.1 GB file need about 4 GB
and take about a minute. Maps are not copied out of the pickle's own bytes before they are moved into the
flat array of ``Rows``.

Names are those written by pandas 0.19 under Python 2 (Kaggle's LSWMD.pkl) up to pandas 3.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from train.progress import Progress
from wafervlm.errors import FileFormatError, ResourceError

_MIB = 1 << 20
_BROKEN = (
    pickle.UnpicklingError, EOFError, ImportError, AttributeError, LookupError, TypeError, ValueError,
    OverflowError, RecursionError,
)  # fmt: skip


class StandIn:
    """Keeps the arguments and the state that a pickle gives an object, and does nothing with them."""

    __slots__ = ("given", "state")

    given: tuple[Any, ...]
    state: Any

    def __new__(cls, *given: Any) -> Self:
        # Not __init__: a pickle can make an object without calling it.
        made = super().__new__(cls)
        made.given, made.state = given, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Table(StandIn):
    """A DataFrame: its state is a dictionary that holds a block manager."""

    __slots__ = ()


class Blocks(StandIn):
    """A block manager: columns of one type are kept together in two-dimensional blocks."""

    __slots__ = ()


class Block(StandIn):
    """One block: values and the columns that they are."""

    __slots__ = ()


class Index(StandIn):
    """Row or column names; made from (class, dictionary)."""

    __slots__ = ()


class Array(StandIn):
    """A numpy array: its state is (version, shape, dtype, is Fortran-ordered, bytes or list)."""

    __slots__ = ()


class Scalar(StandIn):
    """A numpy scalar: made from (dtype, bytes)."""

    __slots__ = ()


class Dtype(StandIn):
    """A numpy dtype: made from a code such as "u1"; its state holds the byte order."""

    __slots__ = ()


class ArrowStrings(StandIn):
    """A column of strings that pandas keeps in Arrow's layout."""

    __slots__ = ()


class ArrowArray(StandIn):
    """Arrow's array: made from ((type, length, nulls, offset, buffers, ...),)."""

    __slots__ = ()


class Wrapped(StandIn):
    """Something around one value that is of use only for that value."""

    __slots__ = ()


class TableUnpickler(pickle.Unpickler):
    """Unpickles tables into stand-ins; refuses every name that is not on its list."""

    _numpy: ClassVar[Mapping[str, type]] = {
        "_reconstruct": Array,
        "scalar": Scalar,
        "ndarray": Array,
        "dtype": Dtype,
    }
    _index: ClassVar[Mapping[str, type]] = dict.fromkeys(
        ("_new_Index", "Index", "RangeIndex", "Int64Index"), Index
    )
    allowed: ClassVar[Mapping[str, Mapping[str, type]]] = {
        "numpy": _numpy,
        "numpy.core.multiarray": _numpy,
        "numpy._core.multiarray": _numpy,
        "pandas": {"DataFrame": Table, "StringDtype": Wrapped, **_index},
        "pandas.core.frame": {"DataFrame": Table},
        "pandas.core.internals": {"BlockManager": Blocks},
        "pandas.core.internals.managers": {"BlockManager": Blocks},
        "pandas._libs.internals": {"_unpickle_block": Block},
        "pandas.indexes.base": _index,
        "pandas.indexes.range": _index,
        "pandas.indexes.numeric": _index,
        "pandas.core.index": _index,
        "pandas.core.indexes.base": _index,
        "pandas.core.indexes.range": _index,
        "pandas.core.indexes.numeric": _index,
        "pandas.arrays": {"ArrowStringArray": ArrowStrings},
        "pyarrow.lib": {"_restore_array": ArrowArray, "type_for_alias": Wrapped, "py_buffer": Wrapped},
        "builtins": {"slice": slice, "bytearray": Wrapped},
        "__builtin__": {"slice": slice, "bytearray": Wrapped},
    }

    def find_class(self, module: str, name: str) -> type:
        """The stand-in for ``module.name``. Raises FileFormatError where there is none."""
        found = self.allowed.get(module, {}).get(name)
        if found is None:
            raise FileFormatError(
                f"the pickle asks for {module}.{name}, which no table of wafer maps needs; it was not run"
            )
        return found

    def persistent_load(self, pid: Any) -> Any:
        """Refused: tables hold no references to the outside."""
        raise FileFormatError("the pickle refers to something outside itself; a table of wafer maps does not")


class _Counted:
    """A binary file that reports how much of it was read."""

    def __init__(self, file: io.BufferedReader, progress: Progress) -> None:
        self._file, self._progress, self._read = file, progress, 0

    def peek(self, size: int) -> bytes:
        # With this the unpickler reads ahead instead of asking for each opcode.
        return bytes(self._file.peek(size))

    def read(self, size: int = -1) -> bytes:
        return self._count(self._file.read(size))

    def readline(self) -> bytes:
        return self._count(self._file.readline())

    def _count(self, data: bytes) -> bytes:
        before, self._read = self._read, self._read + len(data)
        if steps := self._read // _MIB - before // _MIB:
            self._progress.advance(steps)
        return data


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a broken pickle raises into FileFormatError, and want of memory into ResourceError."""
    try:
        yield
    except FileFormatError as error:
        raise error if str(path) in str(error) else FileFormatError(f"{path}: {error}") from None
    except MemoryError:
        raise ResourceError(
            f"memory ran out while reading {path}; the full WM-811K pickle needs 8 GB"
        ) from None
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error}") from None
    except _BROKEN as error:
        raise FileFormatError(f"{path} is not a whole pickle of a pandas table: {error}") from None


def load_pickle(path: Path) -> Any:
    """Unpickle ``path`` into stand-ins, with progress. Use within ``refusing``."""
    with path.open("rb") as file:
        size = path.stat().st_size
        with Progress(f"read {path.name} (MiB)", size // _MIB) as progress:
            # Python 2's strings stay bytes: decoding them would copy every map.
            return TableUnpickler(_Counted(file, progress), encoding="bytes").load()
