"""Rubrics: the rule score of an answer, the reward made of it, and the linter that says if it is sound."""
