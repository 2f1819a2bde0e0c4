"""The whole command at nano's size on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.gpu import run as module
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.device import Device
from benchmarks.gpu.linear import Float8, check, make_form, missing
from benchmarks.gpu.run import run
from benchmarks.gpu.settings import Settings
from benchmarks.gpu.subject import fold_adapter, random_checkpoint
from train.loading import load_checkpoint
from wafervlm.errors import GateError, ProviderError, UsageError

OPTIONS: dict[str, Any] = {
    "shapes": ("nano",),
    "device": "cpu",
    "dtype": "float32",
    "batches": (2,),
    "maps": 3,
    "answer_tokens": 2,
    "row_seconds": 0.01,
    "gptq_layers": 1,
    "gptq_maps": 2,
}


@pytest.fixture(scope="module")
def settings(tiny_checkpoint: Path) -> Settings:
    return Settings(checkpoint=tiny_checkpoint, **OPTIONS)


@pytest.fixture(scope="module")
def ran(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "results.json"
    run(settings, out)
    return out


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in json.loads(path.read_text())["rows"]}


def test_every_row_is_there_or_says_why_not(ran: Path) -> None:
    rows = rows_of(ran)
    good = {"forward/2", "generate/2", "static/2", "static-int4/2", "static-fp8/2", "floor/2"}
    good |= {"profile/static", "replay", "gptq"}
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {f"nano/{name}" for name in good}
    for name in ("forward-captured", "static-captured", "static-compiled", "static-int4-triton"):
        assert rows[f"nano/{name}/2"]["status"] == "skipped: a CUDA graph needs a CUDA device"
    assert rows["nano/float32"]["status"] == "skipped: full precision is float32 here"


def test_the_rows_hold_what_they_promise(ran: Path) -> None:
    rows = rows_of(ran)
    static = rows["nano/static/2"]
    assert {"calls", "p50", "p90", "p99"} <= static["latency_ms"].keys()
    assert static["latency_ms"]["calls"] == 10 and static["per_map_ms"] > 0
    assert static["memory_mib"]["weights"] > 0 and static["memory_mib"]["peak"] is None
    assert static["energy"]["joules_per_map"] is None and static["energy"]["reason"]
    assert static["parity"]["maps"] == 3 and static["parity"]["max_abs_difference"] < 1e-4
    assert rows["nano/forward/2"]["parity"]["max_abs_difference"] < 1e-6
    assert 0 <= rows["nano/static-int4/2"]["kernel_errors"]["int4"] < 1e-4
    assert rows["nano/static-int4/2"]["parity"]["max_abs_difference"] > 1e-4
    assert 0 <= rows["nano/replay"]["replay_error"] < 1e-5
    gptq = rows["nano/gptq"]
    assert gptq["of_layers"] == 2 and gptq["whole_seconds"] > sum(gptq["layer_seconds"])
    assert gptq["layer_error"] < gptq["layer_error_nearest"]
    stored = json.loads(ran.read_text())
    assert stored["shapes"]["nano"]["parameters"] > 1e5
    assert stored["machine"]["torch"] == torch.__version__
    ours = next(ratio for ratio in stored["ratios"] if ratio["pass"] == "static")
    assert ours["over_full_precision_floor"] > 0 and ours["generate_over_it"] > 0


def test_going_on_makes_only_what_is_missing(
    ran: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = rows_of(ran)
    stored = json.loads(ran.read_text())
    stored["rows"] = [row for row in stored["rows"] if row["key"] != "nano/profile/static"]
    ran.write_text(json.dumps(stored))
    monkeypatch.setattr(module, "time_pass", lambda *_: pytest.fail("a row that was ok was made again"))
    monkeypatch.setattr(module, "SECONDS", dict.fromkeys(module.SECONDS, 1e9))
    run(settings, ran)
    after = rows_of(ran)
    assert after["nano/profile/static"]["status"] == "ok"
    assert after["nano/static/2"] == before["nano/static/2"]


def test_what_the_budget_does_not_hold_is_skipped(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run(Settings(**{**OPTIONS, "checkpoint": settings.checkpoint, "budget": 1e-6}), out)
    rows = rows_of(out)
    assert len(rows) > 10
    assert {row["status"] for row in rows.values()} == {"skipped: its 0 s of the time budget are spent"}


def test_a_model_that_cannot_be_had_fails_its_rows_only(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    run(Settings(**{**OPTIONS, "shapes": ("4b",), "config_folder": tmp_path}), out)
    rows = rows_of(out)
    assert "qwen3-vl-4b" in rows["4b/forward/2"]["status"]
    assert all(row["status"].startswith(("failed", "skipped")) for row in rows.values())


def test_random_weights_keep_the_configuration(tiny_checkpoint: Path, cpu: Device) -> None:
    whole = random_checkpoint(tiny_checkpoint, cpu, torch.bfloat16, seed=1)
    again = random_checkpoint(tiny_checkpoint, cpu, torch.bfloat16, seed=1)
    cut = random_checkpoint(tiny_checkpoint, cpu, torch.float32, text_layers=1, vision_layers=1)
    assert whole.model.dtype == torch.bfloat16
    assert torch.equal(whole.model.lm_head.weight, again.model.model.language_model.embed_tokens.weight)
    stored = load_checkpoint(tiny_checkpoint).model.state_dict()
    assert {k: v.shape for k, v in whole.model.state_dict().items()} == {
        k: v.shape for k, v in stored.items()
    }
    assert len(cut.model.model.language_model.layers) == len(cut.model.model.visual.blocks) == 1
    inverse = whole.model.model.language_model.rotary_emb.inv_freq
    assert inverse.dtype == torch.float32


def test_the_shipped_adapter_is_folded_in_as_peft_does() -> None:
    peft = pytest.importorskip("peft")
    from benchmarks.gpu.subject import NANO_WEIGHTS

    folded = load_checkpoint(NANO_WEIGHTS / "base")
    fold_adapter(folded.model, NANO_WEIGHTS / "adapter")
    adapted = load_checkpoint(NANO_WEIGHTS / "base", adapter=NANO_WEIGHTS / "adapter")
    assert isinstance(adapted.model, peft.PeftModel)
    merged = adapted.model.merge_and_unload().state_dict()
    for name, tensor in folded.model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], atol=1e-5, rtol=0, msg=name)


def test_a_kernel_that_computes_something_else_is_not_timed(cpu: Device) -> None:
    layer = make_form("fp8", cpu.torch, 32)(torch.randn(32, 64), None)
    assert check(layer, 5, torch.float32) < 0.06
    layer.get_buffer("scales").mul_(1.5)
    layer.dense = lambda: layer.get_buffer("levels").float() * layer.get_buffer("scales").T / 1.5  # type: ignore[method-assign]
    with pytest.raises(GateError, match="off its own weights"):
        check(layer, 5, torch.float32)


def test_forms_that_do_not_fit_stay_dense(cpu: Device) -> None:
    assert make_form("int4", cpu.torch, 128)(torch.randn(32, 64), None).kind == "dense"
    assert make_form("fp8", cpu.torch, 128)(torch.randn(32, 60), None).kind == "dense"
    assert "CUDA" in missing("int4-triton", cpu.torch) or "Triton" in missing("int4-triton", cpu.torch)
    with pytest.raises(ProviderError):
        make_form("int4-triton", cpu.torch, 128)


def test_a_form_adds_its_bias(cpu: Device) -> None:
    weight, bias, x = torch.randn(16, 64), torch.randn(16), torch.randn(3, 64)
    for kind in ("dense", "int4", "fp8"):
        layer, bare = (make_form(kind, cpu.torch, 32)(weight, b) for b in (bias, None))
        np.testing.assert_allclose(layer(x), bare(x) + bias, atol=1e-5)


def test_the_product_in_fp8_is_that_of_what_it_stores() -> None:
    weight, x = torch.randn(32, 64), torch.randn(5, 64)
    layer = Float8(weight)
    levels, scales = Float8.rounded(x)
    wanted = (levels.float() * scales) @ layer.dense().T
    product = layer.multiplied(levels, scales)
    np.testing.assert_allclose(product.float(), wanted, rtol=0.01, atol=0.02)
    assert torch.equal(layer.product(x), product.to(x.dtype))


def test_what_ended_its_process_comes_last_when_it_is_gone_on_with(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"

    class Killed(BaseException):
        pass

    def killed(which: str, *_: Any) -> Any:
        made.append(which)
        if which == "generate":
            raise Killed
        return {"latency_ms": {"p50": 1.0}}

    made: list[str] = []
    monkeypatch.setattr(module, "time_pass", killed)
    for name in ("floor", "profile", "against_float32", "gptq", "replay"):
        monkeypatch.setattr(module, name, lambda *_: {})
    with pytest.raises(Killed):
        run(settings, out)
    assert rows_of(out)["nano/generate/2"]["status"] == "failed: the process ended in it"
    first, made[:] = len(made), []
    with pytest.raises(Killed):
        run(settings, out)
    # Everything else is there before it is tried again.
    assert made[-1] == "generate" and len(made) > first
    kept = {key for key, row in rows_of(out).items() if row["status"] == "ok"}
    assert {"nano/forward/2", "nano/static/2", "nano/gptq"} <= kept


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"shapes": ("4b",)}, "--config-folder"),
        ({"batches": (17,)}, "1 to 16"),
        ({"batches": (8,)}, "give more --maps"),
        ({"dtype": "int8"}, "not one of"),
        ({"budget": 0}, "more than 0"),
        ({"engines": (Path("e"),)}, "pair them"),
        ({"shapes": ("9b",)}, "known are"),
    ],
)
def test_settings_that_cannot_be_meant(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Settings(**{**OPTIONS, **changed})


def test_the_command_prints_ratios(ran: Path, settings: Settings) -> None:
    arguments = ["--shape", "nano", "--device", "cpu", "--dtype", "float32", "--batch", "2", "--maps", "3"]
    arguments += ["--answer-tokens", "2", "--row-seconds", "0.01", "--gptq-layers", "1", "--gptq-maps", "2"]
    result = CliRunner().invoke(main, [*arguments, "--checkpoint", str(settings.checkpoint), "-o", str(ran)])
    assert result.exit_code == 0, result.output
    assert "static-fp8" in result.output and "/floor" in result.output
    assert "matrix product" in result.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_no_row_fails_on_a_gpu(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    options = {**OPTIONS, "device": "cuda", "dtype": "bfloat16", "checkpoint": tiny_checkpoint}
    run(Settings(**options), out)
    rows = rows_of(out)
    assert not [row for row in rows.values() if row["status"].startswith("failed")]
    assert rows["nano/static-captured/2"]["parity"]["max_abs_difference"] < 0.1
    assert rows["nano/forward-captured/2"]["parity"]["max_abs_difference"] < 0.05
