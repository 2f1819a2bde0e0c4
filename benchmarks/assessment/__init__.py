"""Judging what models say of wafers: ``wafervlm benchmark --words``.

::

    subjects -> answers (kept on disk) -> claims against the dies     claims.py, on real maps and planted ones
                                       -> rule score of rubrics       rules.py
                                       -> a language model's scores   judging.py, aligned with the rules

Claims on real maps are checked against what ``wafervlm.geometry`` measures. Since the same geometry wrote the
texts that models were trained on, claims on planted maps are checked against their generator's truth.
"""
