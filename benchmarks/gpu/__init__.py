"""What a pass costs on a GPU, against full precision and against the floor, in one command.

::

    python -m benchmarks.gpu --shape both --config-folder DIR -o results.json

builds Qwen3-VL-4B and Qwen2.5-VL-7B with random weights on the device and times them on wafer maps that
differ from call to call. DIR holds their configurations and tokenizers in ``qwen3-vl-4b`` and
``qwen2.5-vl-7b``. Latency and memory are then honest; accuracy there is none. The passes:

- ``generate``, ``forward``, ``forward-captured``: transformers in full precision: the answer generated, one
  forward over prompt and label tree, and the same as one CUDA graph;
- ``static``, ``static-captured``, ``static-compiled``: the computation that export/ writes as a graph, in
  full precision: kernel by kernel, as one CUDA graph, and that with what lies between products fused;
- ``static-int4`` (torch's weight-only kernel), ``static-int4-triton`` (ours) and ``static-fp8`` (text and
  vision), the last two fused as well;
- bundles on ONNX Runtime and TensorRT engines (``--bundle``, ``--engine``), from host to host. A bundle whose
  folder has the name of its shape is set against that shape's floor and full precision::

      python -m benchmarks.random_checkpoint DIR/qwen3-vl-4b -o ckpt --gptq
      wafervlm export ckpt -o 4b --task task.toml   # labels, question, 256 x 256 px
      python -m benchmarks.gpu --shape 4b --bundle 4b --config-folder DIR -o results.json

Torch's passes are timed by events of the device, from inputs that lie there to scores that lie there, each
call on an idle device. Each shape, and the bundles, run in a process of their own (parts.py): after a
recording that failed nothing else runs in that one. The result is one JSON file, rewritten after every row; a
file that is there is gone on with, so the budget may be spent over several calls. It holds

- ``schema`` 1, ``begun``, ``settings``, ``machine`` (device, versions, driver, clocks, processor) and
  ``shapes`` (parameters, sizes, tokens to generate);
- ``rows``, each with ``key``, ``kind``, ``status`` ("ok", "skipped: why" or "failed: why"), the ``seconds``
  that it took, where it failed ``where`` (the innermost frames), ``came_of`` and ``came_of_where`` (the first
  error, which recording hides behind its own), and by kind:

  - ``pass``: ``shape``, ``batch``, ``pass``, ``about``, ``captured``, ``latency_ms`` (calls, p50, p90, p99,
    mean, minimum, maximum), ``per_map_ms``, ``memory_mib`` (weights, and peak with them), ``sm_mhz``,
    ``parity`` with full precision on the same maps, ``kernel_errors`` (relative, against the weights that a
    kernel stands for) and ``energy`` (joules_per_map of the whole board, or null and the reason);
  - ``floor``: ``full_precision_ms`` and ``quantized_ms``, ``bandwidth_gb_s``, ``square_tflop_s``, ``gflop``,
    ``weights_mb``, ``absent_kernels`` and ``matrices`` (part, m, k, n, count, kernels_us, bounds_us); see
    floor.py;
  - ``profile``: ``span_ms``, ``busy_ms``, ``gaps_ms``, ``kernels``, ``classes`` and ``longest``;
  - ``float32``: ``parity`` of full precision with float32;
  - ``gptq``: ``layer_seconds``, ``whole_seconds`` and ``how`` that was found, ``tokens``,
    ``memory_peak_mib``;
  - ``replay``: ``replay_error``, of the layer by layer that GPTQ does against the full forward;
  - ``placement``: for each provider of ONNX Runtime the ``nodes`` of a bundle that it runs, by ``operators``,
    and the ``host_ms`` that it spends on them;
  - ``process``: a part whose process did not live to its end;

- ``ratios``: for each pass ``over_full_precision_floor``, ``over_quantized_floor``, ``generate_over_it``,
  ``forward_over_it`` and ``forward_captured_over_it``, of medians; null where the other is missing.

It needs torch and transformers; Triton, nvidia-ml-py, onnxruntime-gpu and TensorRT are used where installed.
"""
