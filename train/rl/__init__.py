"""Reinforcement learning of words: curriculum GSPO from an SFT adapter, rewarded by rubrics and by the dies.

    settings -> rows -> curriculum -> (policy answers) -> reward -> trainer -> adapter

GSPO: C. Zheng et al., "Group Sequence Policy Optimization", arXiv 2507.18071.
"""
