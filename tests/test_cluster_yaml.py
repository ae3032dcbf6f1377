"""The shipped cluster.yaml, held to Ray's own validation without a cloud, and what docs/cluster.md says of it."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cxr_ray.cluster import ENVIRONMENT

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "cluster.md"
COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


@pytest.fixture
def shipped() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` does with a file before it talks to a cloud."""
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def run_in_shell(script: str, home: Path) -> str:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"]}
    result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return result.stdout


def workers(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    types = config["available_node_types"]
    return {name: node for name, node in types.items() if name != config["head_node_type"]}


def documented_commands(program: str) -> list[str]:
    """The lines of docs/cluster.md that call a program, prompts and comments taken off."""
    lines = re.findall(r"^ +(?:laptop|head)\$ +(.+)$", DOCUMENT.read_text(), flags=re.MULTILINE)
    commands = [line.split("  #")[0].strip() for line in lines]
    return [command for command in commands if re.search(rf"(^|[ '\"=]){program} ", command)]


def test_ray_accepts_the_file_as_it_is_and_with_its_defaults_filled_in(shipped: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(shipped, schema)
    prepared = validate(shipped)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0
    assert prepared["head_setup_commands"][: len(shipped["setup_commands"])] == shipped["setup_commands"]


def test_ray_refuses_an_unknown_key_at_the_top(shipped: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate(shipped | {"idle_timeout": 10})


def test_ray_refuses_an_unknown_key_of_a_node_type(shipped: dict[str, Any]) -> None:
    shipped["available_node_types"]["gpu_worker"]["min_worker"] = 0
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate(shipped)


def test_ray_refuses_a_head_that_is_no_node_type(shipped: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="head_node_type"):
        validate(shipped | {"head_node_type": "haed"})


@pytest.mark.parametrize("commands", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_ray_starts_with_token_authentication_and_the_mounted_token(shipped: dict[str, Any], commands: str) -> None:
    (start,) = (command for command in shipped[commands] if "ray start" in command)
    assert start.index("RAY_AUTH_MODE=token") < start.index("ray start")
    assert "export RAY_AUTH_MODE=token" in start
    assert shipped["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_the_head_starts_with_the_autoscaler_and_without_usage_statistics(shipped: dict[str, Any]) -> None:
    (start,) = (command for command in shipped["head_start_ray_commands"] if "ray start" in command)
    options = shlex.split(start.split("ray start", 1)[1])
    assert {"--head", "--disable-usage-stats", "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= set(options)


def test_gpu_workers_are_spot_machines_that_may_all_end_and_the_head_is_neither(shipped: dict[str, Any]) -> None:
    head = shipped["available_node_types"][shipped["head_node_type"]]
    assert "GPU" not in head["resources"]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert shipped["max_workers"] > 0
    (worker,) = workers(shipped).values()
    assert (worker["min_workers"], worker["max_workers"]) == (0, shipped["max_workers"])
    assert worker["resources"]["GPU"] >= 1
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert worker["node_config"]["IamInstanceProfile"]["Name"] != head["node_config"]["IamInstanceProfile"]["Name"]


def test_every_shipped_search_space_fits_on_one_machine(shipped: dict[str, Any]) -> None:
    machines = [node["resources"] for node in shipped["available_node_types"].values()]
    spaces = sorted((ROOT / "tune_spaces").glob("*.yaml"))
    assert spaces
    for space in spaces:
        needed = {kind.upper(): amount for kind, amount in yaml.safe_load(space.read_text())["resources"].items()}
        assert any(all(machine.get(kind, 0) >= amount for kind, amount in needed.items()) for machine in machines), (
            space.name
        )


def test_every_machine_installs_the_pinned_packages_and_the_project(shipped: dict[str, Any]) -> None:
    (install,) = (command for command in shipped["setup_commands"] if "pip install" in command)
    words = shlex.split(install)
    assert words[words.index("-c") + 1] == "constraints.txt"
    assert words[words.index("-e") + 1].startswith(".")
    folder = words[words.index("cd") + 1]
    assert shipped["file_mounts"][f"{folder}/constraints.txt"] == "constraints.txt"
    assert not any("pip install" in command and "-c" not in command for command in shipped["head_setup_commands"])


def test_what_is_copied_exists_and_is_what_the_installation_needs(shipped: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    local = {source for source in shipped["file_mounts"].values() if not source.startswith("~")}
    assert {"cxr_ray", "pyproject.toml", "constraints.txt", project["readme"]} <= local
    for source in local:
        assert (ROOT / source).exists(), source
        # The folder as a whole would bring .venv: `ray up` reads every byte it copies.
        assert (ROOT / source).resolve() != ROOT


def test_every_command_is_valid_shell(shipped: dict[str, Any]) -> None:
    for key in COMMANDS:
        for command in shipped[key]:
            # In brackets, as Ray runs it.
            check = subprocess.run(["bash", "-n", "-c", f"({command})"], capture_output=True, text=True, check=False)
            assert check.returncode == 0, f"{key}: {check.stderr}"


def test_the_environment_reaches_later_shells_and_is_what_cxr_ray_sets_itself(
    shipped: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / ".cxr_api_keys").write_text("one,two\n")
    (tmp_path / ".bashrc").write_text("")
    setup = shipped["setup_commands"][0]
    for _ in range(2):  # `ray up` runs it again
        run_in_shell(f"({setup})", tmp_path)
    assert (tmp_path / ".bashrc").read_text().count("cxr_ray_env") == 1
    seen = dict(line.split("=", 1) for line in run_in_shell(". ~/.bashrc; env", tmp_path).splitlines() if "=" in line)
    assert seen | ENVIRONMENT == seen
    assert seen["CXR_API_KEYS"] == "one,two"
    assert seen["CXR_STORAGE"].startswith("s3://")
    assert seen["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert seen["PATH"].split(":")[0] == f"{tmp_path}/venv/bin"


def test_no_file_names_a_registry_or_another_host() -> None:
    text = (ROOT / "cluster.yaml").read_text() + DOCUMENT.read_text()
    hosts = set(re.findall(r"\w+://[^\s`'\"|]+", text))
    assert all(re.match(r"s3://|http://127\.0\.0\.1:|file://[\w-]+\.json", host) for host in hosts), hosts
    assert not re.search(r"--(extra-)?index-url|(^|\s)-i\s|pypi", text)


def test_every_documented_option_of_cxr_ray_exists() -> None:
    surface = (ROOT / "tests" / "cli_surface.txt").read_text()
    calls = documented_commands("cxr-ray")
    assert {"tune", "leaderboard", "promote", "evaluate", "data"} <= {
        word for call in calls for word in re.findall(r"cxr-ray (\w+)", call)
    }
    for call in calls:
        command = re.search(r"cxr-ray ((?:data )?\w+)(.*)", call)
        assert command is not None
        for option in re.findall(r"(?<=\s)--[\w-]+", command[2]):
            assert f"cxr-ray {command[1]}: {option} " in surface, call


def test_the_documented_edit_makes_a_deployment_that_demands_keys_and_stays_on_the_head(
    shipped: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "cxr_ray").mkdir()
    (tmp_path / "cxr_ray" / "serve_config.yaml").write_text((ROOT / "serve_config.yaml").read_text())
    (edit,) = documented_commands("sed")
    run_in_shell(f"export CXR_STORAGE=s3://bucket/cxr; {edit}", tmp_path)
    content = yaml.safe_load((tmp_path / "deploy.yaml").read_text())
    (application,) = content["applications"]
    assert application["args"]["bundle"] == "s3://bucket/cxr/bundles/joint"
    assert application["args"]["insecure"] is False
    wanted = application["deployments"][0]["ray_actor_options"]
    head = shipped["available_node_types"]["head"]["resources"]
    assert wanted["num_cpus"] <= head["CPU"]
    assert 0 < wanted["resources"]["head"] <= head["head"]
    assert all("head" not in worker["resources"] for worker in workers(shipped).values())
