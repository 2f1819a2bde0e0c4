"""Cleaning of labels: which labels of wafer maps look wrong, why, and what is done about them."""
