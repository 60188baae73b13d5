"""Cluster configurations, as far as they can be checked without a cloud, Kubernetes or Docker.

Against Ray's own schema and code, botocore's description of EC2, and a part of KubeRay's resource
definitions (tests/data/kuberay/README.md).
"""

from __future__ import annotations

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from ray.autoscaler._private.aws.config import _create_default_inbound_rules
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.local import ACTOR_MALLOC

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "cluster"
KUBERAY = json.loads((ROOT / "tests/data/kuberay/schema.json").read_text())
LAUNCHERS = ("aws", "gcp")
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_worker_niceness": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "GLIBC_TUNABLES": ACTOR_MALLOC,
}
AVX512_AWS, AVX512_GCP = re.compile(r"[cmr]7a\.\w+"), re.compile(r"c3d-\w+-\d+")
IMAGE = "nst-batch:0.1.0"


def launcher(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())
    return loaded


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / f"{name}.yaml").read_text()))


def every_file() -> list[Path]:
    found = [*CLUSTER.glob("*.yaml"), *CLUSTER.glob("kuberay/*.yaml"), *CLUSTER.glob("Dockerfile*")]
    assert len(found) == 8
    return found


# Ray's cluster launcher


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_a_launcher_configuration(name: str) -> None:
    config = prepare_config(copy.deepcopy(launcher(name)))
    validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["max_workers"] == 0
    # Ray's defaults install its nightly build on nodes: none of that is left.
    commands = json.dumps([v for k, v in config.items() if k.endswith("commands")])
    assert "ray-wheels" not in commands and "boto3" not in commands


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_s_schema_refuses_a_misspelt_launcher_configuration(name: str) -> None:
    config = prepare_config(copy.deepcopy(launcher(name)))
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "idle_timeout": 5})


@pytest.mark.parametrize("name", LAUNCHERS)
def test_workers_come_and_go_and_the_head_stays(name: str) -> None:
    config = launcher(name)
    types = dict(config["available_node_types"])
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "spot" not in json.dumps(head).lower()
    assert len(types) >= 2, "one kind of spot machine is soon out of stock"
    for worker in types.values():
        assert worker["min_workers"] == 0 and worker["max_workers"] > 0
        node = worker["node_config"]
        cpus = worker["resources"]["CPU"]
        if name == "aws":
            assert node["InstanceMarketOptions"] == {"MarketType": "spot"}
            assert AVX512_AWS.fullmatch(node["InstanceType"])
            assert cpus == {"4xlarge": 16, "8xlarge": 32}[node["InstanceType"].split(".")[1]]
        else:
            assert node["scheduling"]["provisioningModel"] == "SPOT"
            assert AVX512_GCP.fullmatch(node["machineType"])
            assert cpus == int(node["machineType"].rpartition("-")[2])
            disk = node["disks"][0]["initializeParams"]["diskType"]
            assert f"zones/{config['provider']['availability_zone']}/" in disk
    assert config["idle_timeout_minutes"] > 0 and config["max_workers"] > 0
    assert config["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_nodes_demand_a_token_and_get_it_from_a_file(name: str) -> None:
    config = launcher(name)
    options = [shlex.split(o) for o in config["docker"]["run_options"]]
    environment = dict(o[1].split("=", 1) for o in options if o[0] == "--env")
    assert environment == ENVIRONMENT
    # The default place of Ray's token in the image's home.
    assert set(config["file_mounts"]) == {"/home/nst/.ray"}
    assert config["docker"]["image"].endswith(f"/{IMAGE}")
    for role in ("head", "worker"):
        stop, start = config[f"{role}_start_ray_commands"]
        assert stop == "ray stop"
        # See gcp.yaml.
        old = "RAY_enable_autoscaler_v2=0 " if (name, role) == ("gcp", "head") else ""
        assert start.startswith(f"umask 077; {old}ray start ")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_ec2_knows_every_parameter_of_a_node() -> None:
    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    nodes = [t["node_config"] for t in launcher("aws")["available_node_types"].values()]
    for node in nodes:
        request = {**node, "MinCount": 1, "MaxCount": 1}
        assert ParamValidator().validate(request, shape).generate_report() == ""
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(d["Ebs"]["Encrypted"] for d in node["BlockDeviceMappings"])
        # Without a name Ray makes a role with full access to EC2 and S3.
        assert node["IamInstanceProfile"]["Name"].startswith("nst-batch-TENANT-")
    report = ParamValidator().validate({**nodes[0], "InstanceTipe": "x"}, shape).generate_report()
    assert "InstanceTipe" in report


def test_only_ssh_is_open_from_outside_on_aws() -> None:
    group = launcher("aws")["provider"]["security_group"]
    rules = _create_default_inbound_rules(["sg-1"], group.get("IpPermissions", []))
    outside = [rule for rule in rules if "IpRanges" in rule]
    assert [(r["FromPort"], r["ToPort"]) for r in outside] == [(22, 22)]
    inside = [rule for rule in rules if rule not in outside]
    assert [rule["UserIdGroupPairs"] for rule in inside] == [[{"GroupId": "sg-1"}]]


# KubeRay


@pytest.mark.parametrize(("name", "kind"), [("raycluster", "RayCluster"), ("rayjob", "RayJob")])
def test_kuberay_knows_every_field(name: str, kind: str) -> None:
    (document,) = documents(name)
    assert document["apiVersion"] == "ray.io/v1" and document["kind"] == kind
    schema = {"$ref": f"#/$defs/{kind}", "$defs": KUBERAY["$defs"]}
    jsonschema.Draft202012Validator.check_schema(KUBERAY)
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
    # A misspelt field would be dropped by Kubernetes without a word.
    misspelt = copy.deepcopy(document)
    spec_of(misspelt)["authOption"] = spec_of(misspelt).pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        jsonschema.validate(misspelt, schema, jsonschema.Draft202012Validator)


def spec_of(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster in a RayCluster or RayJob."""
    spec: dict[str, Any] = document["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return cluster


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kuberay_clusters(name: str) -> None:
    (document,) = documents(name)
    spec = spec_of(document)
    assert spec["rayVersion"] == locked("ray")
    assert spec["authOptions"] == {"mode": "token", "secretName": "nst-batch-token"}
    assert spec["enableInTreeAutoscaling"] is True
    head, (worker,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert worker["replicas"] == worker["minReplicas"] == 0 < worker["maxReplicas"]
    assert head["template"]["spec"]["nodeSelector"] == {"nst-batch/capacity": "on-demand"}
    assert worker["template"]["spec"]["nodeSelector"] == {"nst-batch/capacity": "spot"}
    for group in (head, worker):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["image"].endswith(f"/{IMAGE}")
        assert {e["name"]: e["value"] for e in container["env"]} == ENVIRONMENT
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        # Ray takes a container's limits for its size; less asked for than taken gets it killed.
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert worker["template"]["spec"]["automountServiceAccountToken"] is False


def test_the_ray_job_runs_a_command_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.cli.main import main

    (document,) = documents("rayjob")
    program, name, *arguments = shlex.split(document["spec"]["entrypoint"])
    assert program == "/usr/local/bin/nst-batch"
    command = main.commands[name]
    # The paths are those of the pods' volume.
    for parameter in command.params:
        for attribute in ("exists", "resolve_path"):
            if hasattr(parameter.type, attribute):
                monkeypatch.setattr(parameter.type, attribute, False)
    context = command.make_context(name, arguments)
    mounts = spec_of(document)["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert [m["mountPath"] for m in mounts] == ["/training"]
    assert context.params["cluster"] == "auto"
    for path in ("content_dir", "style_dir", "vgg", "out"):
        assert context.params[path].is_relative_to("/training")


def test_other_tenants_cannot_reach_the_pods() -> None:
    (policy,) = documents("networkpolicy")
    assert policy["apiVersion"] == "networking.k8s.io/v1" and policy["kind"] == "NetworkPolicy"
    spec = policy["spec"]
    assert spec["podSelector"] == {} and spec["policyTypes"] == ["Ingress"]
    own, operator = spec["ingress"]
    assert own == {"from": [{"podSelector": {}}]}
    # Both selectors in one entry: pods of that name in that namespace, not all pods of either.
    (who,) = operator["from"]
    assert who["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}
    assert list(who["namespaceSelector"]["matchLabels"]) == ["kubernetes.io/metadata.name"]
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


# The image


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in lines]


def locked(package: str) -> str:
    (version,) = re.findall(
        rf"^{re.escape(package)}==(\S+)$",
        (ROOT / "requirements.lock").read_text(),
        flags=re.MULTILINE,
    )
    return str(version)


def test_the_image_s_base_is_pinned_and_its_user_is_not_root() -> None:
    kinds = [kind for kind, _ in instructions()]
    assert kinds.count("FROM") == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", dict(instructions())["FROM"])
    assert dict(instructions())["USER"] == "nst"
    after = kinds[kinds.index("USER") :]
    assert "RUN" not in after and "COPY" not in after


def test_the_image_asks_for_a_token_by_itself() -> None:
    environment = {}
    for kind, rest in instructions():
        if kind == "ENV":
            environment.update(word.split("=", 1) for word in shlex.split(rest))
    assert {name: environment[name] for name in ENVIRONMENT} == ENVIRONMENT
    # The launcher mounts the token below this.
    assert environment["HOME"] == "/home/nst"


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert "*" in ignored
    packages = []
    for kind, rest in instructions():
        if kind == "COPY":
            *sources, _ = rest.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, source
                packages.append(source)
    # All that the package is built from.
    assert {
        *("nst_batch.py", "nst", "jobs", "cluster", "weights", "examples", "pyproject.toml")
    } <= set(packages)


def test_the_image_is_a_server_s_unless_it_is_to_train() -> None:
    assert ("ARG", "LOCK=requirements-server.lock") in instructions()
    installs = [rest for kind, rest in instructions() if kind == "RUN" and "pip" in rest]
    assert "--no-deps --requirement ${LOCK}" in installs[0]
    page = (ROOT / "docs" / "clusters.md").read_text()
    assert "--build-arg LOCK=requirements-train.lock" in page


# All of them


def test_no_secret_stands_in_a_file() -> None:
    for path in every_file():
        text = path.read_text()
        assert not re.search(r"RAY_AUTH_TOKEN\b", text), path
        for pattern in (r"AKIA[0-9A-Z]{16}", r"BEGIN [A-Z ]*PRIVATE KEY", r"(?i)secret_access_key"):
            assert not re.search(pattern, text), path
        assert "kind: Secret" not in text, path
