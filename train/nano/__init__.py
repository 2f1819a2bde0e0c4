"""nano: a Qwen3-VL of a few million parameters, trained here, which the wheel ships."""
