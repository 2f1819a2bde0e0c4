"""From wafer maps to a merged checkpoint: sources and splits, the dataset, LoRA fine-tuning, merging."""
