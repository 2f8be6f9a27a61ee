"""Examples come back as they were kept, and keeping them imports no library that is not needed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from megatron_dpop.data.storage import SCHEMA, StoredExamples, record_batch
from megatron_dpop.data.tokenise import TokenizedRecord


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int32)


EXAMPLES = [
    TokenizedRecord(ids(), (ids(1, 2), ids(1, 3)), (True, False), (), 0.0),
    TokenizedRecord(ids(7), (ids(4), ids(5, 6, 7), ids(5)), (False, True, False), (), 0.0),
]


def kept(*batches: list[TokenizedRecord]) -> StoredExamples:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(record_batch(batch))
    return StoredExamples(sink.getvalue(), "digest")


@pytest.mark.parametrize("batches", [(EXAMPLES,), (EXAMPLES[:1], [], EXAMPLES[1:]), (EXAMPLES[:1], EXAMPLES[1:], [])])
def test_examples_come_back_as_they_were_kept(batches: tuple[list[TokenizedRecord], ...]) -> None:
    """Without a prompt too, and from batches that hold none."""
    found = kept(*batches)
    assert len(found) == len(EXAMPLES)
    for at, example in enumerate(EXAMPLES):
        prompt, completions, preferred, common = found[at]
        assert prompt.dtype == np.int32
        assert prompt.tolist() == example.prompt.tolist()
        assert [completion.tolist() for completion in completions] == [c.tolist() for c in example.completions]
        assert preferred == example.preferred
        assert common == (1 if at == 0 else 0)


def test_nothing_imports_pandas() -> None:
    """It would take half a second of every process's start."""
    text = f"import sys; from {__name__} import EXAMPLES, kept; kept(EXAMPLES)[0]; print('pandas' in sys.modules)"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", text], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
