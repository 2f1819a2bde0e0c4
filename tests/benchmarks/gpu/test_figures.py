"""Arithmetic of the floor, of ratios, parity and kernel tables, and the file that keeps them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu.device import Device, time_calls, weight_bytes
from benchmarks.gpu.floor import Timed, copy_bandwidth, measure_floor, sum_floors, time_matrix, weight_size
from benchmarks.gpu.kernels import Span, class_of, profile_pass, spans, tabulate
from benchmarks.gpu.nvml import Telemetry
from benchmarks.gpu.parity import agreement, parity
from benchmarks.gpu.ratios import profile_table, ratio_table, ratios
from benchmarks.gpu.results import Budget, Results, failed, skipped
from benchmarks.gpu.static import Matrix
from wafervlm.errors import ProviderError, UsageError

TEXT = Matrix("text", m=4, k=64, n=32, count=3)
HEAD = Matrix("head", m=4, k=64, n=7, count=1)


def test_the_floor_is_the_best_kernel_and_never_less_than_its_bytes() -> None:
    timed = [
        # Dense is bound by its bytes, FP8 by its kernel, and INT4 is slower than both.
        Timed(TEXT, {"dense": 10.0, "fp8": 6.0, "int4": 40.0}, {"dense": 12.0, "fp8": 5.0, "int4": 3.0}),
        Timed(HEAD, {"dense": 2.0}, {"dense": 1.0}),
    ]
    found = sum_floors(timed)
    assert found["full_precision_ms"] == pytest.approx((3 * 12.0 + 2.0) / 1e3)
    assert found["quantized_ms"] == pytest.approx((3 * 6.0 + 2.0) / 1e3)


def test_every_product_is_timed_by_every_kernel_there_is(cpu: Device) -> None:
    matrix = Matrix("text", m=4, k=64, n=32, count=1)
    timed = time_matrix(cpu, matrix, torch.float32, 32, bandwidth=1e9)
    assert set(timed.kernels) == {"dense", "int4", "fp8"}
    assert min(timed.kernels.values()) > 0
    assert timed.bounds["dense"] == pytest.approx(4 * 64 * 32 / 1e9 * 1e6)
    assert timed.bounds["int4"] == pytest.approx(timed.bounds["dense"] / 8)
    assert set(time_matrix(cpu, HEAD, torch.float32, 32, 1e9).kernels) == {"dense"}
    assert weight_size(TEXT, "dense", torch.bfloat16) == 2 * 64 * 32


def test_the_floor_names_what_is_missing_and_what_it_is_made_of(cpu: Device) -> None:
    found = measure_floor(cpu, [TEXT, HEAD], torch.float32, 32)
    assert found["quantized_ms"] <= found["full_precision_ms"]
    assert found["gflop"] == pytest.approx((3 * 2 * 4 * 64 * 32 + 2 * 4 * 64 * 7) / 1e9)
    assert found["bandwidth_gb_s"] > 0 and found["square_tflop_s"] > 0
    assert list(found["absent_kernels"]) == ["int4-triton"]
    assert [one["count"] for one in found["matrices"]] == [3, 1]
    assert copy_bandwidth(cpu, repeats=1) > 0


def test_calls_go_round_the_inputs_and_warm_up_first(cpu: Device) -> None:
    seen: list[int] = []
    times = time_calls(cpu, seen.append, [1, 2, 3], seconds=1e-9, warmup=2, least=4)
    assert len(times) == 4 and min(times) >= 0
    assert seen == [1, 2, 3, 1, 2, 3]
    with pytest.raises(UsageError, match="no input"):
        time_calls(cpu, seen.append, [], seconds=1)


def test_shared_weights_count_once() -> None:
    one = torch.nn.Linear(4, 4, bias=False)
    two = torch.nn.Linear(4, 4, bias=False)
    two.weight = one.weight
    assert weight_bytes(torch.nn.Sequential(one, two)) == 64


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ProviderError, match="choose cpu"):
        Device("cuda")


def test_energy_without_a_gpu_is_null_and_says_why(cpu: Device) -> None:
    telemetry = Telemetry(cpu)
    used = telemetry.energy_of(lambda: None)
    assert used.joules is None and "NVIDIA" in used.reason
    assert telemetry.describe() == {"nvml": used.reason}
    assert telemetry.sm_clock() is None


def test_parity_of_known_scores() -> None:
    reference = np.log([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]])
    moved = reference.copy()
    moved[1] = np.log([0.5, 0.25, 0.25])
    found = parity(reference, moved)
    assert found["max_abs_difference"] == pytest.approx(math.log(2))
    assert found["label_agreement"] == 0.5
    # KL of (.25, .5, .25) from (.5, .25, .25): .25 ln .5 + .5 ln 2, over two maps.
    assert found["kl"] == pytest.approx(0.25 * math.log(2) / 2)
    assert found["median_lead"] == pytest.approx((math.log(3.5) + math.log(2)) / 2)
    assert agreement([0, -1], reference) == 0.5


def test_kernels_are_tabulated_with_their_gaps() -> None:
    kernels = [Span("gemm_a", 0, 10), Span("flash_fwd", 12, 8), Span("gemm_b", 15, 10), Span("odd", 35, 5)]
    found = tabulate(kernels)
    assert found["span_ms"] == pytest.approx(0.040)
    assert found["busy_ms"] == pytest.approx(0.028)  # 0 to 10, 12 to 25, 35 to 40
    assert found["gaps_ms"] == pytest.approx(0.012)
    assert [(r["name"], r["count"]) for r in found["classes"]] == [
        ("matrix product", 2),
        ("attention", 1),
        ("other", 1),
    ]
    assert "gaps 0.012 ms" in profile_table({**found, "shape": "4b", "batch": 1, "pass": "static"})[0]
    assert tabulate([])["kernels"] == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x64_64x8_TNT", "matrix product"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add>", "elementwise"),
        ("int4_kernel", "int4 product"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("void at::native::CatArrayBatchedCopy_alignedK_contig", "gather, concatenate"),
        ("triton_red_fused__fused_rms_norm_add_0", "norm"),
    ],
)
def test_kernels_have_a_class(name: str, kind: str) -> None:
    assert class_of(name) == kind


def test_events_inside_others_do_not_count_twice() -> None:
    event = {"ph": "X", "cat": "cpu_op", "name": "outer", "ts": 0, "dur": 10}
    inner = {**event, "name": "inner", "ts": 2, "dur": 3}
    other = {**event, "cat": "python", "ts": 20}
    assert spans([inner, event, other], {"cpu_op"}) == [Span("outer", 0, 10)]


def test_a_real_profile_finds_the_product(cpu: Device) -> None:
    a = torch.randn(64, 64)
    found = profile_pass(cpu, lambda: a @ a)
    assert found["classes"][0]["name"] == "matrix product"
    assert 0 < found["busy_ms"] <= found["span_ms"]


def timed_row(name: str, p50: float, batch: int = 1) -> dict[str, Any]:
    return {
        "key": f"4b/{name}/{batch}",
        "kind": "pass",
        "status": "ok",
        "shape": "4b",
        "batch": batch,
        "pass": name,
        "latency_ms": {"p50": p50},
    }


FLOOR = {
    "key": "4b/floor/1",
    "kind": "floor",
    "status": "ok",
    "shape": "4b",
    "batch": 1,
    "full_precision_ms": 2.0,
    "quantized_ms": 1.0,
    "bandwidth_gb_s": 4000.0,
    "square_tflop_s": 700.0,
}


def test_ratios_are_of_the_same_shape_and_batch() -> None:
    rows = [
        timed_row("generate", 100.0),
        timed_row("static-captured", 5.0),
        timed_row("generate", 300.0, 8),
        FLOOR,
    ]
    found = {(r["pass"], r["batch"]): r for r in ratios(rows)}
    ours = found["static-captured", 1]
    assert ours["generate_over_it"] == 20.0
    assert (ours["over_full_precision_floor"], ours["over_quantized_floor"]) == (2.5, 5.0)
    assert ours["forward_captured_over_it"] is None
    assert found["generate", 8]["over_full_precision_floor"] is None
    lines = ratio_table([*rows, {"key": "4b/static-fp8/1", **skipped("no kernel")}])
    assert "20.0" in next(line for line in lines if "static-captured" in line)
    assert lines[-1] == "4b/static-fp8/1: skipped: no kernel"


MACHINE = {"device": "cpu", "torch": "2", "transformers": "5", "telemetry": {"sm_mhz": 1}}


def test_a_result_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results = Results(path, {"seed": 0}, MACHINE)
    results.put("4b/generate/1", timed_row("generate", math.nan))
    results.put("4b/floor/1", FLOOR)
    results.put("4b/static/1", skipped("budget"))
    stored = json.loads(path.read_text())
    assert stored["schema"] == 1 and {"settings", "machine", "shapes", "rows", "ratios"} <= stored.keys()
    assert stored["rows"][0]["latency_ms"]["p50"] is None  # NaN is no JSON
    again = Results(path, {"seed": 0}, {**MACHINE, "telemetry": {"sm_mhz": 2}})
    assert again.has("4b/floor/1") and not again.has("4b/static/1")
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_another_result_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    Results(path, {"seed": 0}, MACHINE).put("a", FLOOR)
    with pytest.raises(UsageError, match="seed 0, and here it is 1"):
        Results(path, {"seed": 1}, MACHINE)
    with pytest.raises(UsageError, match="device 'cpu'"):
        Results(path, {"seed": 0}, {**MACHINE, "device": "H200"})
    path.write_text('{"schema": 9}')
    with pytest.raises(UsageError, match="choose another --out"):
        Results(path, {}, MACHINE)
    path.write_text("half of a fi")
    with pytest.raises(UsageError, match="cannot be read"):
        Results(path, {}, MACHINE)


def test_a_budget_refuses_what_it_does_not_hold() -> None:
    now = [0.0]
    budget = Budget(50, clock=lambda: now[0])
    now[0] = 45.0
    assert budget.refusal() == ""
    assert "5 s are left" in budget.refusal(10)
    now[0] = 51.0
    assert budget.refusal() == "its 50 s of the time budget are spent"
    assert "spent" in failed(RuntimeError("spent\n twice"))["status"]


def test_a_row_that_failed_says_where_and_what_it_came_of() -> None:
    def capture() -> None:
        try:
            raise ArithmeticError("a copy from the host")
        except ArithmeticError:
            raise RuntimeError("a previous error")  # noqa: B904

    with pytest.raises(RuntimeError) as caught:
        capture()
    row = failed(caught.value)
    assert row["status"] == "failed: RuntimeError: a previous error"
    assert row["came_of"] == "ArithmeticError: a copy from the host"
    assert row["where"][-1].endswith("capture") and row["came_of_where"][-1].startswith("test_figures.py:")
    assert "came_of" not in failed(ValueError("alone"))


def test_errors_that_name_each_other_or_hide_one_another_end() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__context__ = second, first
    assert failed(first)["status"] == "failed: ValueError: first"
    hiding = ValueError("said")
    hiding.__context__, hiding.__suppress_context__ = KeyError("hidden"), True
    assert "came_of" not in failed(hiding)


def test_a_reason_of_many_lines_is_one() -> None:
    assert skipped("no kernel:\n  line 1\n") == {"status": "skipped: no kernel: line 1"}
