"""Merged checkpoint and wafer maps in, GPTQ checkpoint out."""
