from __future__ import annotations

import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.train.lswmd_writer import write_python2_pickle
from train.sources.lswmd import read_lswmd
from train.sources.npz import read_npz
from train.sources.tables import read_table
from train.sources.unpickle import TableUnpickler
from wafervlm.errors import FileFormatError

ROOT = Path(__file__).resolve().parents[2]
BOTH = ["python2_pandas0.19.pkl", "mirlab_style.pkl"]


@pytest.fixture(scope="module")
def lswmd(wm811k: Path) -> Path:
    return wm811k.parent / "lswmd"


def small(path: Path, count: int = 6) -> Path:
    rng = np.random.default_rng(1)
    grids = [rng.integers(0, 3, (4 + i, 9), dtype=np.uint8) for i in range(count)]
    labels = ["Center", "", "none", "Loc", "", "edge-ring "] * (count // 6)
    parts = ["Training" if label else "" for label in labels]
    write_python2_pickle(path, grids, labels, [f"lot{i // 3}" for i in range(count)], parts)
    return path


@pytest.mark.parametrize("name", BOTH)
def test_maps_and_labels_are_those_of_the_npz(lswmd: Path, wm811k: Path, name: str) -> None:
    known = read_npz(wm811k / "train.npz")
    place = {digest: i for i, digest in enumerate(known.digests.tolist())}
    rows = read_lswmd(lswmd / name)
    assert len(rows) == 90
    for i in range(len(rows)):
        there = place[str(rows.digests[i])]
        assert np.array_equal(rows.grid(i), known.grid(there))
        assert rows.labels[i] == known.labels[there]
        assert rows.canonical[i] == known.canonical[there]


def test_both_formats_say_the_same(lswmd: Path) -> None:
    kaggle, mirlab = (read_lswmd(lswmd / name) for name in BOTH)
    assert kaggle.digests.tolist() == mirlab.digests.tolist()
    assert kaggle.labels.tolist() == mirlab.labels.tolist()
    assert kaggle.lots.tolist() == mirlab.lots.tolist()
    assert kaggle.part.tolist() == mirlab.part.tolist()
    assert set(kaggle.part.tolist()) == {"Training", "Test"}


def test_unlabelled_rows_on_request(lswmd: Path) -> None:
    rows = read_lswmd(lswmd / BOTH[0], labelled=False)
    assert len(rows) == 108
    assert int((rows.labels == "").sum()) == 18
    assert rows.source_index.tolist() == list(range(108))


def test_the_writer_of_these_tests_writes_what_the_reader_reads(tmp_path: Path) -> None:
    rows = read_lswmd(small(tmp_path / "LSWMD.pkl"), labelled=False)
    rng = np.random.default_rng(1)
    expected = [rng.integers(0, 3, (4 + i, 9), dtype=np.uint8) for i in range(6)]
    assert all(np.array_equal(rows.grid(i), expected[i]) for i in range(6))
    assert rows.labels.tolist() == ["Center", "", "none", "Loc", "", "Edge-Ring"]
    assert rows.lots.tolist() == ["lot0"] * 3 + ["lot1"] * 3
    assert rows.part.tolist() == ["Training", "", "Training", "Training", "", "Training"]


def test_needs_neither_pandas_nor_pyarrow(tmp_path: Path, lswmd: Path) -> None:
    code = f"""
        import sys
        for name in ("pandas", "pyarrow"):
            sys.modules[name] = None  # any import of it fails
        from pathlib import Path
        from train.sources.lswmd import read_lswmd
        for name in {BOTH}:
            print(len(read_lswmd(Path({str(lswmd)!r}) / name)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["90", "90"]


class Runs:
    """Pickles as a call of ``function(*arguments)``."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> object:
        return self.call


def attacks(canary: Path) -> dict[str, bytes]:
    import os

    touch = f"touch {canary}"
    opened = f"open({str(canary)!r}, 'w').close()"
    nested = Runs(getattr, Runs(__import__, "os"), "system")
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    system = b"cposix\nsystem\n(V" + touch.encode() + b"\ntR"
    return {
        "os.system": pickle.dumps(Runs(os.system, touch)),
        "eval": pickle.dumps(Runs(eval, opened)),
        "exec": pickle.dumps(Runs(exec, opened)),
        "getattr": pickle.dumps(nested),
        "numpy.save": pickle.dumps(Runs(np.save, str(canary), [1])),
        "numpy.load": b"\x80\x02cnumpy\nload\n(V" + str(canary).encode() + b"\ntR.",
        "argument of an allowed name": b"\x80\x02" + reconstruct + b"(" + system + b"tR.",
        "state of an allowed name": b"\x80\x02" + reconstruct + b")R" + system + b"b.",
        "dotted name": pickle.PROTO + b"\x04\x8c\x05numpy\x8c\x12ndarray.__class__.x\x93.",
        "attribute of an allowed class": pickle.PROTO + b"\x04\x8c\x08builtins\x8c\x0dslice.__class__\x93.",
        "old instance opcode": b"(V" + touch.encode() + b"\niposix\nsystem\n.",
        "Python 2's os": b"cos\nsystem\n(V" + touch.encode() + b"\ntR.",
        "persistent id": b"Pfile:/etc/passwd\n.",
        "extension registry": b"\x80\x02\x82\x01.",
    }


@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_runs_nothing_that_a_pickle_asks_for(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "LSWMD.pkl"
    path.write_bytes(attacks(canary)[name])
    with pytest.raises(FileFormatError, match="LSWMD"):
        read_lswmd(path)
    assert not canary.exists()


def test_the_attacks_do_run_when_unpickled_blindly(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(attacks(canary)["os.system"])  # the test above can fail
    assert canary.exists()


def test_code_inside_a_real_table_is_refused(tmp_path: Path) -> None:
    whole = small(tmp_path / "LSWMD.pkl").read_bytes()
    canary = tmp_path / "canary"
    evil = b"cos\nsystem\n(V" + f"touch {canary}".encode() + b"\ntR"
    cut = whole.index(b"U\x04lot0")
    (tmp_path / "evil.pkl").write_bytes(whole[:cut] + evil + whole[cut + 6 :])
    with pytest.raises(FileFormatError, match=r"asks for os\.system.*was not run"):
        read_lswmd(tmp_path / "evil.pkl")
    assert not canary.exists()


def test_a_stand_in_cannot_be_changed_by_a_pickle() -> None:
    # BUILD upon a class, not an object, would set attributes that later files see.
    crafted = b"\x80\x02cpandas.core.frame\nDataFrame\n(N}(U\x05statsK\x01utb."
    with pytest.raises(TypeError):
        TableUnpickler(io.BytesIO(crafted), encoding="bytes").load()


@pytest.mark.parametrize("keep", [0, 1, 100, 1000, 0.5, 0.99])
def test_truncated(tmp_path: Path, keep: float) -> None:
    whole = small(tmp_path / "LSWMD.pkl").read_bytes()
    cut = tmp_path / "cut.pkl"
    cut.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(FileFormatError, match="cut.pkl"):
        read_lswmd(cut)


@pytest.mark.parametrize("value", [1, [1, 2], {"a": 1}, np.arange(3)])
def test_a_pickle_of_something_else(tmp_path: Path, value: object) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(value, protocol=2))
    with pytest.raises(FileFormatError):
        read_table(path)


def test_wrong_label_and_wrong_die_values(tmp_path: Path) -> None:
    good = np.ones((3, 3), dtype=np.uint8)
    write_python2_pickle(tmp_path / "a.pkl", [good], ["Centre"], ["lot1"], ["Training"])
    with pytest.raises(FileFormatError, match="label 'Centre'"):
        read_lswmd(tmp_path / "a.pkl")
    write_python2_pickle(
        tmp_path / "b.pkl", [good, good * 3], ["Center", "Loc"], ["lot1"] * 2, ["Training"] * 2
    )
    with pytest.raises(FileFormatError, match="row 1 holds other values"):
        read_lswmd(tmp_path / "b.pkl")


def test_missing_column(tmp_path: Path) -> None:
    whole = small(tmp_path / "a.pkl").read_bytes()
    (tmp_path / "a.pkl").write_bytes(whole.replace(b"failureType", b"failureTypo"))
    with pytest.raises(FileFormatError, match="no column 'failuretype'"):
        read_lswmd(tmp_path / "a.pkl")


def test_whatever_the_bytes_it_returns_or_refuses(tmp_path: Path) -> None:
    """300 mutants in a process of limited memory: each is read or refused by an error of ours."""
    path = small(tmp_path / "LSWMD.pkl", 18)
    code = f"""
        import resource, sys
        import numpy as np
        from pathlib import Path
        from train.sources.lswmd import read_lswmd
        from wafervlm.errors import WaferVLMError
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        from contextlib import redirect_stderr
        from io import StringIO
        whole = np.frombuffer(Path({str(path)!r}).read_bytes(), np.uint8)
        mutant = Path({str(tmp_path / "mutant.pkl")!r})
        rng, refused = np.random.default_rng(2), 0
        for _ in range(300):
            data = whole.copy()
            places = rng.integers(0, len(data), rng.integers(1, 6))
            data[places] = rng.integers(0, 256, len(places))
            mutant.write_bytes(data.tobytes())
            try:
                with redirect_stderr(StringIO()):
                    read_lswmd(mutant)
            except WaferVLMError:
                refused += 1
        print(refused)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 50 < int(done.stdout) < 300


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_the_full_file_would_fit_in_8_gb(tmp_path: Path) -> None:
    """Peak memory by row of a file with the full one's mean map size, times 811,457 rows."""
    rng = np.random.default_rng(3)
    count = 12_000
    grids = [rng.integers(0, 3, (46, 45), dtype=np.uint8) for _ in range(count)]
    labels = ["Loc" if i % 5 == 0 else "" for i in range(count)]
    path = tmp_path / "LSWMD.pkl"
    write_python2_pickle(path, grids, labels, [f"lot{i // 25}" for i in range(count)], labels)
    code = f"""
        from pathlib import Path
        from train.sources.lswmd import read_lswmd
        def peak():  # bytes; getrusage would count the parent's
            return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
        before = peak()
        read_lswmd(Path({str(path)!r}), labelled=False)
        print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    used = int(done.stdout)
    assert used > count * 46 * 45  # it did hold the maps
    assert used / count * 811_457 < 8e9
