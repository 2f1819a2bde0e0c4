"""Building engines: every name that is called exists in both packages, real builds, and what is refused.

Marked ``tensorrt``: ``pip install tensorrt-rtx cuda-bindings`` for most, and for the names in tensorrt a
folder with the wheel of its bindings: ``pip install --no-deps --target DIR tensorrt-cu13-bindings`` (11) or
``tensorrt-cu12-bindings==10.16.1.11``, named by WAFERVLM_TENSORRT_BINDINGS; several with a colon between.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wafervlm import cli, doctor
from wafervlm.bundle import EMBEDDED, Bundle, open_bundle
from wafervlm.capabilities import State
from wafervlm.engine import open_engine
from wafervlm.errors import (
    DigestError,
    MissingDependencyError,
    ProviderError,
    SetupError,
    UsageError,
    VerificationError,
)
from wafervlm.manifest import Graph, Manifest
from wafervlm.runtimes import (
    cuda,
    tensorrt_api,
    tensorrt_build,
    tensorrt_package,
    tensorrt_precision,
    tensorrt_target,
)
from wafervlm.runtimes.tensorrt_build import build_engine, check_buildable, is_memory
from wafervlm.runtimes.tensorrt_package import INSTALL, RTX, TENSORRT, Library, Messages, import_library
from wafervlm.runtimes.tensorrt_target import find_target

BINDINGS = [path for path in os.environ.get("WAFERVLM_TENSORRT_BINDINGS", "").split(os.pathsep) if path]
LAYERS = (
    *tensorrt_precision.PRODUCTS,
    *tensorrt_precision.FOLLOWERS,
    *tensorrt_precision.SOURCES,
    "ELEMENTWISE",
)
# What the shared libraries of TensorRT would give the bindings.
SYMBOLS = (
    *("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL"),
    *("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    *("getBuilderPluginRegistry", "getPluginRegistry", "initLibNvInferPlugins"),
)
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed: pip install tensorrt-rtx cuda-bindings",
)
CHECK = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
lacks = []
for owner, names in json.load(sys.stdin).items():
    held = trt
    for part in owner.split(".") if owner else []:
        held = getattr(held, part, None)
    lacks += [f"{owner}.{name}" for name in names if not hasattr(held, name)]
print(json.dumps([trt.__version__, lacks]))
"""


def table(rtx: bool) -> dict[str, list[str]]:
    """Class to the names that are called of it, as the protocols of tensorrt_api say; "" is the module."""
    found: dict[str, list[str]] = {}
    for name, protocol in vars(tensorrt_api).items():
        only_rtx = tensorrt_api.RTX_ONLY.get(protocol) if inspect.isclass(protocol) else None
        mine = inspect.isclass(protocol) and getattr(protocol, "_is_protocol", False)
        if not mine or name.startswith("_") or protocol.__module__ != tensorrt_api.__name__:
            continue
        if (only_rtx or name == "RtxPackage") and not rtx:
            continue
        owner = {"Package": "", "RtxPackage": "", "Severity": "ILogger.Severity"}.get(name, only_rtx or name)
        names = {n for n in (*vars(protocol), *protocol.__annotations__) if not n.startswith("_")}
        found.setdefault(owner, []).extend(sorted(names))
    found["LayerType"] = sorted(set(LAYERS))
    return found


def lacking(names: dict[str, list[str]], package: str, env: dict[str, str]) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", CHECK, package],
        input=json.dumps(names),
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, lacks = json.loads(done.stdout)
    return version, lacks


def bindings(folder: str, work: Path) -> dict[str, str]:
    """The environment in which the bindings in ``folder`` import: stubs stand in for the libraries."""
    (version,) = Path(folder).glob("tensorrt_cu*_bindings-*.dist-info")
    major = re.search(r"-(\d+)\.", version.name)
    assert major is not None
    source = work / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for library in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        soname = f"lib{library}.so.{major[1]}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", str(work / soname), str(source)],
            check=True,
        )
    return {"LD_LIBRARY_PATH": str(work), "PYTHONPATH": folder}


@pytest.fixture
def toy(shared_toy_bundle: Path) -> Bundle:
    return open_bundle(shared_toy_bundle)


@pytest.fixture(scope="module")
def rtx() -> Library:
    return import_library(RTX)


def test_the_table_holds_what_the_code_calls() -> None:
    """mypy refuses a name that no protocol has; here, that each name of a protocol is called somewhere."""
    modules = (tensorrt_build, tensorrt_package, tensorrt_precision)
    source = "".join(inspect.getsource(module) for module in modules)
    folder = Path(tensorrt_api.__file__).parent
    others = (
        *("tensorrt.py", "tensorrt_cache.py", "tensorrt_loading.py", "tensorrt_target.py"),
        *("../words/tensorrt_steps.py", "../words/tensorrt_build.py", "../engine_build.py"),
    )
    source += "".join((folder / name).read_text() for name in others)
    for owner, names in table(rtx=True).items():
        for name in names:
            found = re.search(rf"\b{name}\b", source) or (owner == "ComputeCapability" and '"SM"' in source)
            assert found, f"{owner}.{name} is called nowhere: take it out of tensorrt_api"
    assert {"Builder", "IBuilderConfig", "ICudaEngine", "IExecutionContext", "IRuntimeCache"} <= set(
        table(True)
    )


@pytest.mark.tensorrt
@needs_rtx
def test_every_name_is_in_tensorrt_rtx() -> None:
    version, lacks = lacking(table(rtx=True), RTX, {})
    assert not lacks, version


@pytest.mark.tensorrt
@pytest.mark.skipif(
    not BINDINGS, reason="WAFERVLM_TENSORRT_BINDINGS names no folder with tensorrt's bindings"
)
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is needed for the stub libraries")
@pytest.mark.parametrize("folder", BINDINGS)
def test_every_name_is_in_tensorrt(folder: str, tmp_path: Path) -> None:
    version, lacks = lacking(table(rtx=False), "tensorrt_bindings", bindings(folder, tmp_path))
    assert not lacks, version


@pytest.mark.tensorrt
@needs_rtx
def test_the_check_finds_a_name_that_is_not_there() -> None:
    _, lacks = lacking({"IBuilderConfig": ["no_such_name"], "NoSuchClass": ["a"]}, RTX, {})
    assert lacks == ["IBuilderConfig.no_such_name", "NoSuchClass.a"]


@pytest.mark.tensorrt
def test_every_function_of_cuda_python_is_there() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    source = inspect.getsource(cuda)
    names = set(re.findall(r'"(cuda[A-Z]\w+)"', source))
    assert len(names) > 30
    enumerations = (runtime.cudaError_t, runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    holders = (runtime, *enumerations)
    assert not [name for name in names if not any(hasattr(holder, name) for holder in holders)]
    properties = runtime.cudaDeviceProp()
    assert all(hasattr(properties, name) for name in ("name", "major", "minor", "totalGlobalMem"))


@pytest.mark.tensorrt
def test_calls_reach_the_real_cuda_python() -> None:
    """Without a driver each gives an error of its own, which needs the right arguments first."""
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if int(cuda.import_runtime().cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a GPU here")
    with pytest.raises(ProviderError, match="look at what nvidia-smi shows$"):
        cuda.find_gpu()
    calls = cuda.Cuda()
    kind = calls.constant("cudaMemcpyKind", "cudaMemcpyHostToDevice")
    mode = calls.constant("cudaStreamCaptureMode", "cudaStreamCaptureModeThreadLocal")
    for function, arguments in {
        "cudaSetDevice": (0,),
        "cudaMalloc": (64,),
        "cudaMemcpyAsync": (1, 2, 3, kind, 5),
        "cudaStreamCreateWithFlags": (calls.constant("", "cudaStreamNonBlocking"),),
        "cudaStreamBeginCapture": (5, mode),
        "cudaGraphLaunch": (3, 5),
        "cudaStreamSynchronize": (5,),
        "cudaGetDeviceProperties": (0,),
    }.items():
        with pytest.raises(ProviderError, match="cudaErrorInsufficientDriver|cudaErrorNoDevice"):
            calls.call(function, *arguments)
    with pytest.raises(ProviderError):
        calls.is_done(5)


@pytest.mark.tensorrt
@needs_rtx
def test_a_toy_bundle_becomes_an_engine_folder(
    toy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "engine"
    command = ["engine", "--bundle", str(toy.path), "--target", "rtx:8.6,8.9", "-o", str(out), "--json"]
    assert cli.main(command) == 0
    told = capsys.readouterr()
    result = json.loads(told.out)
    assert result["compute_capabilities"] == ["8.6", "8.9"]
    assert (result["driver"], result["gpu"], result["verification"]) == (None, None, None)
    assert f"next: wafervlm verify --bundle {toy.path} --engine {out}" in told.err
    assert "unverified" in told.err
    built = open_engine(out, toy)
    assert len(built.read(built.manifest.file)) == built.manifest.file.size > 1000
    assert cli.main(command) == 0
    assert "it is not built again" in capsys.readouterr().err
    try:
        fits = cuda.find_gpu().compute_capability in ("8.6", "8.9")
    except SetupError:
        fits = False
    code = (VerificationError if fits else SetupError).exit_code
    assert cli.main(["predict", "map.npy", "--bundle", str(toy.path), "--engine", str(out)]) == code
    assert ("golden maps" in capsys.readouterr().err) is fits


def test_the_parser_gets_the_bytes_that_were_checked(toy_bundle: Path) -> None:
    bundle = open_bundle(toy_bundle)
    given: list[tuple[bytes, str]] = []
    parser: Any = SimpleNamespace(parse=lambda data, path: given.append((data, path)) is None)
    library: Any = None
    graph = toy_bundle / bundle.manifest.graph.file
    tensorrt_build._parse(parser, library, bundle, graph.name)
    assert given == [(graph.read_bytes(), str(graph.resolve()))]
    data = bytearray(graph.read_bytes())
    data[-1] ^= 1
    graph.write_bytes(data)
    with pytest.raises(DigestError):
        tensorrt_build._parse(parser, library, bundle, graph.name)
    assert len(given) == 1


@pytest.mark.tensorrt
@needs_rtx
def test_the_doctor_names_the_package_and_the_gpu(rtx: Library) -> None:
    checks = {check.name: check for check in doctor.examine()}
    check = checks["predict, tensorrt"]
    assert f"{RTX} {rtx.version}" in check.found
    assert check.state is State.OK or "ahead of time, not run" in check.found


@pytest.mark.tensorrt
@needs_rtx
def test_ctrl_c_ends_a_build_and_writes_nothing(toy: Bundle) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(toy, find_target("rtx:8.9"), precision="bf16", max_batch=2, report=stop)
    # And the next build is none the worse for it.
    assert build_engine(toy, find_target("rtx:8.9"), precision="bf16", max_batch=2).nbytes > 1000


@pytest.mark.tensorrt
@needs_rtx
def test_a_graph_that_tensorrt_cannot_read_is_named(rtx: Library) -> None:
    embedded = open_bundle()
    graph = replace(embedded.manifest.graph, vision="float32")
    pretended = Bundle(embedded.path, replace(embedded.manifest, graph=graph), embedded.digest)
    with pytest.raises(ProviderError, match="cannot read the operator DynamicQuantizeLinear"):
        build_engine(pretended, find_target("rtx:8.9"), precision="bf16", max_batch=1)


@pytest.mark.tensorrt
@needs_rtx
@pytest.mark.parametrize("target", ["rtx:9.0", "rtx:8.7", "rtx:x", "rtx:8.9,"])
def test_a_gpu_that_tensorrt_rtx_does_not_know(target: str) -> None:
    with pytest.raises(UsageError, match=r"only for 7\.5, 8\.0, 8\.6, 8\.9.*--target tensorrt"):
        find_target(target)


@pytest.mark.parametrize("target", ["cuda", "rtx:", "auto:8.9", "tensorrt:8.9", ""])
def test_a_target_that_does_not_exist(target: str) -> None:
    with pytest.raises(UsageError, match="there is no target"):
        find_target(target)


def test_without_a_gpu_the_way_without_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise ProviderError("no GPU can be used here")

    monkeypatch.setattr(tensorrt_target, "find_gpu", none)
    with pytest.raises(SetupError, match=r"ahead of time, as in: wafervlm engine .*--target rtx:8\.6"):
        find_target("auto")


@pytest.mark.parametrize(
    ("installed", "builder", "reason"),
    [
        ((TENSORRT, RTX), TENSORRT, "times its kernels on it"),
        ((TENSORRT,), TENSORRT, "builds for any GPU"),
        ((RTX,), RTX, "tensorrt is not"),
    ],
)
def test_which_package_builds_and_why(
    installed: tuple[str, ...], builder: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Capabilities:
        SM86 = SM89 = 1

    module: Any = type("Module", (), {"__version__": "1", "ComputeCapability": Capabilities})
    none: Any = None
    monkeypatch.setattr(tensorrt_target, "find_gpu", lambda: cuda.Gpu("A GPU", "8.9", "13.0", 1))
    monkeypatch.setattr(tensorrt_target, "installed", lambda: installed)
    monkeypatch.setattr(
        tensorrt_target, "import_library", lambda name: Library(name, module, none, Messages())
    )
    found = find_target("auto")
    assert (found.library.name, found.compute_capabilities) == (builder, ("8.9",))
    assert reason in found.reason


def test_neither_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_target, "find_gpu", lambda: cuda.Gpu("A GPU", "8.9", "13.0", 1))
    monkeypatch.setattr(tensorrt_target, "installed", tuple)
    with pytest.raises(MissingDependencyError, match=r"wafervlm\[tensorrt-rtx\]"):
        find_target("auto")


@pytest.mark.parametrize("name", [RTX, TENSORRT, "cuda"])
def test_what_is_missing_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for blocked in (RTX, TENSORRT, "cuda.bindings.runtime"):
        monkeypatch.setitem(sys.modules, blocked, None)
    with pytest.raises(MissingDependencyError, match="install it with: pip install"):
        if name == "cuda":
            cuda.import_runtime.__wrapped__()
        else:
            import_library.__wrapped__(name)
    assert set(INSTALL) == {RTX, TENSORRT}


def manifest_of(toy: Bundle, maxima: list[float], **graph: Any) -> Manifest:
    records = [{"stage": "calibrate", "parity": {"absolute_maximum": value}} for value in maxima]
    about = Graph(**{"precision": "int4", "group_size": 32, **graph})
    return replace(toy.manifest, graph=about, provenance=({"stage": "export"}, *records))


def test_fp16_needs_room_that_calibration_saw(toy: Bundle) -> None:
    check_buildable(manifest_of(toy, [50.9]), "fp16", ("8.9",))
    with pytest.raises(UsageError, match="reached 4.2e.04 in calibration.*below 30000.*--precision bf16"):
        check_buildable(manifest_of(toy, [50.9, 4.2e4]), "fp16", ("8.9",))
    with pytest.raises(UsageError, match="no record of how large.*--precision bf16"):
        check_buildable(manifest_of(toy, []), "fp16", ("8.9",))
    with pytest.raises(UsageError, match="leaves"):
        check_buildable(manifest_of(toy, [float("nan")]), "fp16", ("8.9",))


def test_what_no_engine_is_built_from(toy: Bundle) -> None:
    with pytest.raises(
        UsageError, match="8-bit integers.*wafervlm export CHECKPOINT -o BUNDLE --vision float32"
    ):
        check_buildable(manifest_of(toy, [], vision="int8"), "bf16", ())
    with pytest.raises(UsageError, match=r"int4 weights.*7\.5.*wafervlm export MERGED"):
        check_buildable(manifest_of(toy, []), "bf16", ("8.6", "7.5"))
    whole = manifest_of(toy, [], precision="float32", group_size=None)
    room = manifest_of(toy, [50.9], precision="float32", group_size=None)
    for manifest, precision in ((whole, "bf16"), (room, "fp16")):
        with pytest.raises(UsageError, match=r"7\.5 has no bf16.*--precision fp32"):
            check_buildable(manifest, precision, ("7.5",))
    check_buildable(whole, "fp32", ("7.5",))
    with pytest.raises(UsageError, match="no precision 'int8'"):
        check_buildable(whole, "int8", ())


def test_the_embedded_bundle_is_refused_in_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["engine", "-o", str(tmp_path / "engine")]) == 2
    assert "Missing option '--bundle'" in capsys.readouterr().err
    assert cli.main(["engine", "-o", str(tmp_path / "engine"), "--bundle", str(EMBEDDED)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and "--vision float32" in lines[0]
    assert not (tmp_path / "engine").exists()


@pytest.mark.parametrize(
    "text", ["Error Code 2: OutOfMemory (no further information)", "CUDA: out of memory", "std::bad_alloc"]
)
def test_messages_of_full_memory(text: str) -> None:
    assert is_memory(text)
    assert not is_memory("Error Code 1: Myelin ([type.cpp:186])")


def test_only_the_last_messages_are_kept() -> None:
    messages = Messages()
    for index in range(100):
        messages.add(str(index))
    assert messages.take()[-1] == "99"
    assert messages.take() == []
