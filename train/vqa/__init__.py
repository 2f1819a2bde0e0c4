"""Descriptions, rubrics, questions and answers about wafer maps, from what is measured on the dies."""
