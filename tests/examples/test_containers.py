"""The image's recipes and the manifests: good by their own schemas, in agreement with each other and with the code."""

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_dpop.commands.main import build_parser
from megatron_dpop.runtime import exits
from megatron_dpop.runtime.torchrun import build_parser as torchrun_parser
from tests.examples.openapi import faults

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (DOCKER / "apptainer.def").read_text(encoding="utf-8")
MANIFEST = yaml.safe_load((ROOT / "examples" / "kubernetes" / "train.yaml").read_text(encoding="utf-8"))
SCHEMA = yaml.safe_load((Path(__file__).parent / "jobset_schema.yaml").read_text(encoding="utf-8"))
SKYPILOT = yaml.safe_load((ROOT / "examples" / "skypilot" / "train.yaml").read_text(encoding="utf-8"))


def _instructions() -> list[list[str]]:
    """The Dockerfile's, in words."""
    lines = [line for line in DOCKERFILE.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    return [line.split() for line in lines]


def test_dockerfile_passes_its_linter() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("needs hadolint (megatron-dpop[dev])")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_install_script_passes_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, DOCKER / "install.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_images_hold_what_the_project_is_built_from() -> None:
    """pip builds it from these: every package, and every file that pyproject.toml names."""
    copied = [word.rstrip("/") for words in _instructions() if words[0] == "COPY" for word in words[1:-1]]
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert set(copied) == packages | {"pyproject.toml", "setup.py", "README.md", "LICENSE", "docker/install.sh"}
    assert all((ROOT / path).exists() for path in copied)
    (files,) = re.findall(r"^%files\n((?: +.*\n)+)", APPTAINER, re.MULTILINE)
    pairs = [line.split() for line in files.splitlines()]
    assert pairs == [[source, f"/opt/megatron-dpop/{source}"] for source in copied]


def test_all_start_from_the_same_image_and_install_alike() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"^Bootstrap: docker\nFrom: (\S+)$", APPTAINER, re.MULTILINE) == [base]
    assert SKYPILOT["resources"]["image_id"] == f"docker:{base}"
    assert ["RUN", "docker/install.sh"] in _instructions()
    assert "%post\n    /opt/megatron-dpop/docker/install.sh\n" in APPTAINER
    assert SKYPILOT["setup"] == "docker/install.sh"


def test_install_keeps_the_images_torch_or_fails(tmp_path: Path) -> None:
    """With stand-ins for python3 and megatron-dpop that record their words."""
    for replaced, code in ((False, 0), (True, 1)):
        marker = tmp_path / f"installed-{replaced}"
        python = f"""#!/bin/bash
if [[ $1 == -c ]]; then
    version=2.13.0a0+nv
    [[ -e {marker} && {str(replaced).lower()} == true ]] && version=2.13.0
    [[ $2 == *torch==* ]] && echo "torch==$version" || echo "$version"
else
    echo "$@ $(<"$PIP_CONSTRAINT")" >{marker}
fi
"""
        for name, text in (("python3", python), ("megatron-dpop", "#!/bin/bash\necho version\n")):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TMPDIR": str(tmp_path), "PIP_CONSTRAINT": "/etc/theirs"}
        done = subprocess.run([DOCKER / "install.sh"], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        said = marker.read_text().split()
        assert said[:3] == ["-m", "pip", "install"]
        assert (Path(said[-2]) / "pyproject.toml").resolve() == ROOT / "pyproject.toml"
        assert said[-1] == "torch==2.13.0a0+nv"


def test_jobset_passes_its_schema() -> None:
    assert list(faults(MANIFEST, SCHEMA)) == []


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(tree: Any) -> None:
        for step in path[:-1]:
            tree = tree[step]
        tree[path[-1]] = to

    return change


JOB = ("spec", "replicatedJobs", 0, "template", "spec")
POD = (*JOB, "template", "spec")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_set("spec", "maxRestarts", to=3), "spec.maxRestarts: unknown"),
        (_set("spec", "failurePolicy", "restartStrategy", to="Never"), "is none of"),
        (_set(*JOB, "parallelism", to="two"), "'two' is no integer"),
        (_set(*POD, "containers", 0, "env", 0, "value", to=1), "1 is no string"),
        (_set(*POD, "containers", 0, "image", to=None), "None is no string"),
        (_set(*POD, "containers", 0, "resources", "limits", "nvidia.com/gpu", to="8 GPUs"), "not of the form"),
        (_set(*POD, "volumes", 0, "persistentVolumeClaim", to={}), "claimName: is missing"),
    ],
)
def test_schema_refuses_what_a_cluster_would(change: Callable[[Any], None], fault: str) -> None:
    spoilt = copy.deepcopy(MANIFEST)
    change(spoilt)
    (found,) = faults(spoilt, SCHEMA)
    assert fault in found


def test_jobset_starts_one_launcher_a_node_with_the_words_that_it_takes() -> None:
    job = MANIFEST["spec"]["replicatedJobs"][0]
    spec = job["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == ["python3", "-m", torchrun_parser().prog.split()[-1]]
    (index,) = (word for word in container["args"] if "$(" in word)
    assert index == "--node-rank=$(JOB_COMPLETION_INDEX)"
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["args"]]
    options = torchrun_parser().parse_args(words)
    assert options.nnodes == spec["parallelism"] == spec["completions"]
    assert options.nproc_per_node == container["resources"]["limits"]["nvidia.com/gpu"]
    name, network = MANIFEST["metadata"]["name"], MANIFEST["spec"]["network"]
    assert options.master_addr == f"{name}-{job['name']}-0-0.{network['subdomain']}"
    assert network["enableDNSHostnames"]
    assert [{"containerPort": options.master_port}] == container["ports"]
    assert (options.module, options.script) == (True, "megatron_dpop")
    assert build_parser().parse_args(options.words).config == Path("config.yaml")


def test_jobset_does_not_repeat_what_would_fail_again() -> None:
    spec = MANIFEST["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [exits.BAD_INPUT, exits.UNHEALTHY]
    assert rule["onExitCodes"]["containerName"] == spec["template"]["spec"]["containers"][0]["name"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else Kubernetes refuses a podFailurePolicy
    assert MANIFEST["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_skypilot_runs_a_command_and_goes_on_after_a_stop() -> None:
    program, *words = shlex.split(SKYPILOT["run"])
    assert program == "megatron-dpop"
    assert words == ["train", "$CONFIG"]
    assert SKYPILOT["envs"]["CONFIG"].startswith("/data/")
    assert "/data" in SKYPILOT["file_mounts"]
    assert SKYPILOT["resources"]["job_recovery"]["recover_on_exit_codes"] == [exits.STOPPED]


def test_settings_are_those_of_the_slurm_scripts() -> None:
    settings = (ROOT / "examples" / "slurm" / "settings.sh").read_text(encoding="utf-8")
    known = dict(re.findall(r"^export (\w+)=\$\{\w+:-([^}]+)\}", settings, re.MULTILINE))
    (container,) = MANIFEST["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert {one["name"]: one["value"] for one in container["env"]} == known
    theirs = {name: value for name, value in SKYPILOT["envs"].items() if name != "CONFIG"}
    assert theirs.items() <= known.items()
