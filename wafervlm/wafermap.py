"""WaferMap: the die grid of one wafer and what is known of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from wafervlm.errors import WaferMapError

NO_DIE, PASS, FAIL = 0, 1, 2
MIN_SIDE, MAX_SIDE = 3, 4096

# The same sentence is read at the command line, in Python and in the error column of scores.
MAP_CODES = "say what each code means, as in --bins .=0,P=1,F=2 (in Python bins={'.': 0, 'P': 1, 'F': 2})"

DieGrid = NDArray[np.uint8]
Orientation = Literal["top", "right", "bottom", "left"]


@dataclass(frozen=True, slots=True, eq=False)
class WaferMap:
    """The dies of one wafer.

    ``dies`` is (H, W) uint8, row 0 at the top: 0 no die, 1 pass, 2 fail. Any integer dtype,
    byte order and memory order is taken, and floats that are whole; the array is copied and
    the copy is read-only. ``orientation`` is the side of the image on which the notch or flat
    lies, None where it is not known (WM-811K has none). Raises WaferMapError.
    """

    dies: DieGrid
    orientation: Orientation | None = None
    id: str = ""
    lot: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not isinstance(self.lot, str):
            raise WaferMapError(f"id {self.id!r} and lot {self.lot!r} of a wafer map must be text")
        object.__setattr__(self, "dies", check_dies(self.dies, self.id))
        if self.orientation is not None and self.orientation not in get_args(Orientation):
            raise WaferMapError(
                f"orientation {self.orientation!r} of wafer map {self.id or '(no id)'} is not one of "
                f"{', '.join(get_args(Orientation))}; leave it out when it is not known"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the die grid."""
        return self.dies.shape[0], self.dies.shape[1]

    @property
    def die_count(self) -> int:
        """Dies on the wafer, passing or failing."""
        return int(np.count_nonzero(self.dies))

    @property
    def fail_count(self) -> int:
        """Failing dies."""
        return int(np.count_nonzero(self.dies == FAIL))

    @property
    def fail_share(self) -> float:
        """Failing dies over dies, 0 to 1."""
        return self.fail_count / self.die_count

    @property
    def digest(self) -> str:
        """First 24 hex digits of sha256 over ``b"HxW:"`` and the row-major dies."""
        return grid_digest(self.dies)

    @property
    def canonical_digest(self) -> str:
        """The digest of the smallest of the eight rotations and mirrors: equal for all of them."""
        return canonical_digest(self.dies)

    def transformed(self, symmetry: int) -> WaferMap:
        """One of the eight rotations and mirrors (0 is the identity), orientation following."""
        return replace(
            self, dies=transform(self.dies, symmetry), orientation=_turned(self.orientation, symmetry)
        )

    @property
    def upright(self) -> WaferMap:
        """The wafer turned so that its orientation mark lies at the bottom; as it is where none is known."""
        return self.transformed(self.upright_turns) if self.upright_turns else self

    @property
    def upright_turns(self) -> int:
        """Quarter turns, counter-clockwise, that bring the orientation mark to the bottom; 0 without one."""
        return ("bottom", "left", "top", "right").index(self.orientation or "bottom")

    def __reduce__(self) -> tuple[type[WaferMap], tuple[object, ...]]:
        # A copy or a pickle goes through the checks again, which also keeps its dies read-only.
        return WaferMap, (self.dies, self.orientation, self.id, self.lot)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, WaferMap):
            return NotImplemented
        mine, theirs = (self.orientation, self.id, self.lot), (other.orientation, other.id, other.lot)
        return mine == theirs and np.array_equal(self.dies, other.dies)

    def __hash__(self) -> int:
        return hash((self.digest, self.orientation, self.id, self.lot))

    def __repr__(self) -> str:
        name = f" {self.id!r}" if self.id else ""
        rows, columns = self.shape
        return f"<WaferMap{name} {rows}x{columns}, {self.fail_count} of {self.die_count} dies fail>"


def check_dies(dies: object, name: str = "") -> DieGrid:
    """Return ``dies`` as a read-only (H, W) uint8 copy, or raise WaferMapError saying what is wrong."""
    where = f"wafer map {name}" if name else "the wafer map"
    array = _as_grid(dies, where)
    # Compared value by value: a conversion to uint8 would wrap 258 to 2 and turn NaN into anything.
    valid = (array == NO_DIE) | (array == PASS) | (array == FAIL)
    if not valid.all():
        row, column = np.unravel_index(int(valid.argmin()), valid.shape)
        raise WaferMapError(
            f"{where} holds the value {array[row, column]} at row {row}, column {column}; it must hold only "
            f"0 no die, 1 pass, 2 fail; of a file with other codes {MAP_CODES}"
        )
    if not array.any():
        raise WaferMapError(f"{where} has no die: every value is 0")
    grid = array.astype(np.uint8, order="C", copy=True)
    grid.flags.writeable = False
    return grid


def _as_grid(dies: object, where: str) -> NDArray[Any]:
    if isinstance(dies, np.ma.MaskedArray):
        raise WaferMapError(f"{where} is a masked array; fill what is masked, with 0 where there is no die")
    try:
        array = np.asarray(dies)
    except (ValueError, TypeError, OverflowError) as error:
        raise WaferMapError(f"{where} cannot be read as a die grid of shape (H, W): {error}") from None
    if array.dtype == np.bool_:
        raise WaferMapError(f"{where} is boolean, which cannot tell no die from pass; use 0, 1 and 2")
    if array.dtype.kind not in "iuf":
        raise WaferMapError(f"{where} has dtype {array.dtype}; use integers 0 no die, 1 pass, 2 fail")
    if array.ndim != 2:
        raise WaferMapError(f"{where} has shape {array.shape}; it must be a die grid of shape (H, W)")
    if min(array.shape) < MIN_SIDE or max(array.shape) > MAX_SIDE:
        raise WaferMapError(
            f"{where} is {array.shape[0]}x{array.shape[1]} dies; each side must be {MIN_SIDE} to {MAX_SIDE}"
        )
    return array


def transform(grid: DieGrid, symmetry: int) -> DieGrid:
    """One of the eight symmetries of the square: ``symmetry % 4`` quarter turns counter-clockwise,
    after a left-right mirror when ``symmetry >= 4``. Raises WaferMapError for any other number."""
    if symmetry not in range(8):
        raise WaferMapError(f"symmetry {symmetry!r} is not one of 0 to 7")
    return np.ascontiguousarray(np.rot90(np.fliplr(grid) if symmetry >= 4 else grid, symmetry % 4))


def grid_digest(grid: DieGrid) -> str:
    """First 24 hex digits of sha256 over ``b"HxW:"`` and the row-major dies of a uint8 grid."""
    return _sha(_keyed(grid))


def canonical_digest(grid: DieGrid) -> str:
    """The digest of the smallest of the eight rotations and mirrors of ``grid``."""
    return _sha(min(_keyed(transform(grid, symmetry)) for symmetry in range(8)))


def _keyed(grid: DieGrid) -> bytes:
    return f"{grid.shape[0]}x{grid.shape[1]}:".encode() + np.ascontiguousarray(grid).tobytes()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def _turned(orientation: Orientation | None, symmetry: int) -> Orientation | None:
    if orientation is None:
        return None
    clockwise: tuple[Orientation, ...] = get_args(Orientation)
    place = clockwise.index(orientation)
    if symmetry >= 4:
        place = -place
    return clockwise[(place - symmetry % 4) % 4]
