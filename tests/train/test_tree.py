"""The label tree against the tokenizers it is built from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from train.nano.config import CHAT_TEMPLATE
from train.tree import label_tree
from wafervlm.errors import TaskError
from wafervlm.task import Task


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def qwen(wm811k: Path) -> PreTrainedTokenizerFast:
    folder = wm811k.parents[1] / "models" / "qwen3-vl-4b"
    if not folder.is_dir():
        pytest.skip(f"no tokenizer of the real family at {folder}")
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=CHAT_TEMPLATE)


def test_sequences_are_the_answer_as_written(tokenizer: PreTrainedTokenizerFast, tiny_task: Task) -> None:
    tree = label_tree(tokenizer, tiny_task)
    assert tokenizer.decode(tree.prefix_ids) == tiny_task.answer_prefix
    for label, sequence in zip(tree.labels, tree.sequences, strict=True):
        assert tokenizer.decode(sequence) == f" {tiny_task.spelling(label)} defect"


def test_paths_lead_to_every_label_once(tokenizer: PreTrainedTokenizerFast, tiny_task: Task) -> None:
    tree = label_tree(tokenizer, tiny_task)
    assert len(set(tree.paths)) == len(tree.labels)
    for sequence, path in zip(tree.sequences, tree.paths, strict=True):
        chosen = [tree.nodes[node].branches[branch] for node, branch in path]
        assert all(token in sequence for token in chosen)
        assert all(len(tree.nodes[node].branches) > 1 for node, _ in path)


def test_nodes_come_after_their_parents(tokenizer: PreTrainedTokenizerFast, tiny_task: Task) -> None:
    tree = label_tree(tokenizer, tiny_task)
    for index, node in enumerate(tree.nodes[1:], start=1):
        assert node.parent < index
        assert node.depth == tree.nodes[node.parent].depth + 1
        assert node.token in tree.nodes[node.parent].branches
    assert tree.ancestors(0) == ()


def test_real_vocabulary_shares_the_first_token_of_edge_loc_and_edge_ring(
    qwen: PreTrainedTokenizerFast,
) -> None:
    labels = ("Center", "Donut", "Edge-Loc", "Edge-Ring", "Loc", "Near-full", "Random", "Scratch", "none")
    tree = label_tree(qwen, Task(labels=labels, answer_prefix="", answer_suffix=""))
    assert tree.sequences[0][0] == 9392
    assert tree.sequences[2][:3] == (11656, 8125, 509)
    assert tree.sequences[3][:3] == (11656, 10911, 287)
    assert len(tree.nodes) == 2
    assert tree.nodes[1].token == 11656


def test_a_label_that_begins_another_is_told_apart_by_its_end(qwen: PreTrainedTokenizerFast) -> None:
    tree = label_tree(qwen, Task(labels=("Edge", "Edge-Ring"), answer_prefix="", answer_suffix=""))
    end = qwen.convert_tokens_to_ids("<|im_end|>")
    assert tree.sequences[0][-1] == end
    assert any(end in node.branches and len(node.branches) == 2 for node in tree.nodes)


def test_merge_across_the_prefix_is_refused(qwen: PreTrainedTokenizerFast) -> None:
    task = Task(labels=("center", "donut"), answer_prefix="type:", answer_suffix="")
    assert label_tree(qwen, task)
    for prefix in ("type: ", "("):
        with pytest.raises(TaskError, match="merges with the text before it"):
            label_tree(qwen, replace(task, answer_prefix=prefix, labels=("I", "type", "Center")))


def test_labels_of_one_token_need_only_the_root(qwen: PreTrainedTokenizerFast) -> None:
    tree = label_tree(qwen, Task(labels=("Center", "Random"), answer_prefix="", answer_suffix=""))
    assert len(tree.nodes) == 1
    assert tree.paths == (((0, 0),), ((0, 1),))
    assert tree.fed == ()
