"""The model that foretells its time answers and scores as the harness's own, whatever the order of its batches."""

from typing import Any

import pytest

from megatron_dpop.evaluation.load import load_model
from megatron_dpop.evaluation.subject import Subject
from tests.tiny import write_model

pytestmark = pytest.mark.slow

PROMPTS = [" ".join(f"w{(3 * at + word) % 90}" for word in range(2 + 5 * at % 17)) for at in range(11)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("lm_eval", reason="needs megatron-dpop[eval]")
    folder = write_model(tmp_path_factory.mktemp("paced") / "model")
    subject = Subject(folder, folder / "eval", {})
    return load_model(subject, backend="transformers", batch_size=2, arguments="dtype=float32,device=cpu")


def _requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=given, idx=0, metadata=("t", at, 1))
        for at, given in enumerate(arguments)
    ]


def test_answers_are_those_of_the_harness_in_its_order(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    lengths = [{"until": ["w5"], "max_gen_toks": 6 + at % 2} for at in range(len(PROMPTS))]
    requests = _requests("generate_until", list(zip(PROMPTS, lengths, strict=True)))
    ours = model.generate_until(requests)
    assert ours == HFLM.generate_until(model, requests, disable_tqdm=True)
    assert len(set(ours)) > 1
    assert "11 answers of at most 7 tokens, 2 at once" in capsys.readouterr().err


def test_scores_are_those_of_the_harness_in_its_order(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    pairs = [(prompt, f" w{at} w{word}") for at, prompt in enumerate(PROMPTS) for word in range(4)]
    requests = [((a, b), *model._encode_pair(a, b)) for a, b in pairs]
    ours = model._loglikelihood_tokens(requests)
    theirs = HFLM._loglikelihood_tokens(model, requests, True)
    assert [score for score, _ in ours] == pytest.approx([score for score, _ in theirs], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert "44 completions to score: about" in capsys.readouterr().err
