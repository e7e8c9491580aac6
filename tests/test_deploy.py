"""The files of ``deploy/`` fit this version: settings, commands, routes and accounts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tangram.cli.main import cli
from tangram.config import load_config
from tests.web.asgi import site_of

ROOT: Final = Path(__file__).parents[1]
DEPLOY: Final = ROOT / "deploy"
ACCOUNT: Final = 10001
PAGE: Final = (ROOT / "docs" / "deploying.md").read_text()


def dockerfile() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def commands(text: str) -> set[str]:
    """Return the commands of tangram that a text runs."""
    return set(re.findall(r'(?:\bbin/|["\s])tangram"?[, ]+"?([a-z][a-z-]+)"?(?=[\s",\]]|$)', text))


def manifests() -> Iterator[Mapping[str, Any]]:
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        yield from yaml.safe_load_all(file.read_text())


def kind(name: str) -> Mapping[str, Any]:
    (found,) = [one for one in manifests() if one["kind"] == name]
    return found


def test_the_dockerfile_copies_files_that_exist() -> None:
    """Every source of COPY is in the repository, and the build runs the script that is tested below."""
    sources = [
        source
        for word, rest in dockerfile()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]

    assert len(sources) >= 5
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert ("RUN", "sh deploy/install.sh /opt/tangram . $PLUGINS") in dockerfile()


def test_the_image_runs_as_an_account_without_rights() -> None:
    """The last stage sets a numeric account, and its commands exist."""
    last = dockerfile()[[word for word, _ in dockerfile()].index("FROM", 1) :]

    assert ("USER", f"{ACCOUNT}:{ACCOUNT}") in last
    assert [word for word, _ in last].index("USER") < [word for word, _ in last].index("CMD")
    assert commands((DEPLOY / "Dockerfile").read_text()) == {"serve", "status"}
    assert {"serve", "status", "check"} <= set(cli.commands)


def test_the_configurations_are_valid() -> None:
    """The container's file, that of Kubernetes, and every TANGRAM_ variable name settings that exist."""
    load_config(DEPLOY / "tangram.toml", {})
    environ = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["node1"]["environment"]
    container = kind("Deployment")["spec"]["template"]["spec"]["containers"][0]
    secrets = {variable["name"]: "0123456789abcdef" * 4 for variable in container["env"]}
    unit = dict(
        re.findall(
            r"^Environment=(\w+)=(.*)$", (DEPLOY / "systemd" / "tangram.service").read_text(), re.MULTILINE
        )
    )

    composed = load_config(DEPLOY / "tangram.toml", environ)
    assert composed.config.core.redis_url == "redis://valkey:6379"
    assert composed.warnings == ()
    assert load_config(DEPLOY / "tangram.toml", secrets).config.channel.jwt_secret
    del unit["TANGRAM_CONFIG"]
    assert str(load_config(None, unit).config.server.state_dir) == "/var/lib/tangram"


def test_the_configuration_of_kubernetes_is_valid(tmp_path: Path) -> None:
    """The ConfigMap has a whole file."""
    file = tmp_path / "tangram.toml"
    file.write_text(kind("ConfigMap")["data"]["tangram.toml"])

    assert load_config(file, {}).config.server.hosts == ("maps.example.org",)


def test_kubernetes_probes_ask_routes_of_the_server() -> None:
    """The paths exist, the pod stops within its grace, and the selectors find each other."""
    spec = kind("Deployment")["spec"]
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    routes = {endpoint.route.template.display for endpoint in site_of().table.endpoints}
    probes = [container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")]

    assert {probe["httpGet"]["path"] for probe in probes} == {"/-/readyz", "/-/healthz"} & routes
    assert pod["terminationGracePeriodSeconds"] >= 5 + 10 + 5
    assert pod["securityContext"]["runAsUser"] == ACCOUNT
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    assert kind("Service")["spec"]["selector"] == labels
    assert kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_every_file_is_described() -> None:
    """The page names each file of the folder."""
    files = [path.relative_to(DEPLOY) for path in DEPLOY.rglob("*") if path.is_file()]

    assert len(files) >= 9
    assert [str(file) for file in files if f"deploy/{file}" not in PAGE] == []


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    """``systemd-analyze verify`` finds nothing, and the exposure is low."""
    program = Path(sys.executable).with_name("tangram")
    for name in ("tangram.service", "tangram.socket"):
        text = (DEPLOY / "systemd" / name).read_text()
        (tmp_path / name).write_text(text.replace("/opt/tangram/bin/tangram", str(program)))
    files = [str(tmp_path / name) for name in ("tangram.service", "tangram.socket")]
    verified = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False
    )
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", files[0]],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (verified.returncode, verified.stderr) == (0, "")
    assert rated.returncode == 0, rated.stdout[-300:]
