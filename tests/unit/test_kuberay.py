"""The manifests in `jobs/kuberay/`: valid for KubeRay and Kubernetes, and what their schemas miss."""

import gzip
import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from danbooru_index.cli.entry import make_parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "jobs" / "kuberay"
SCHEMAS = ROOT / "tests" / "data" / "kubernetes"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
SECRET = re.compile(r"(hf_|AKIA)[A-Za-z0-9]{10}|auth_token:|stringData|kind: Secret")


def schema_of(name):
    with gzip.open(SCHEMAS / f"{name}.json.gz", "rt") as file:
        return closed(json.load(file))


def closed(schema):
    """The schema with no field besides those it names: a misspelt one is an error, as it is for
    `kubectl create`. Labels, quantities and the like have names of their own.
    """
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: closed(part) for name, part in schema.items()}
    named = isinstance(made.get("properties"), dict) and made["properties"]
    if named and made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def every_document():
    return [document for name in MANIFESTS for document in documents(name)]


def schema_for(document):
    """The schema of its kind; a RayCluster's is in that of a RayJob."""
    kind = document["kind"]
    if kind == "CronJob":
        return schema_of("kubernetes_1.34") | {"$ref": "#/$defs/io.k8s.api.batch.v1.CronJob"}
    if kind == "RayCronJob":
        return described(schema_of("ray.io_raycronjobs_v1"))
    job = schema_of("ray.io_rayjobs_v1")
    if kind == "RayCluster":
        job["properties"]["spec"] = job["properties"]["spec"]["properties"]["rayClusterSpec"]
    return described(job)


def described(schema):
    """With the metadata that every object has, which these schemas leave to Kubernetes."""
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}},
        "additionalProperties": False,
    }
    return schema


def clusters():
    """The Ray cluster of every manifest."""
    specs = [document["spec"] for document in every_document()]
    return [
        spec.get("jobTemplate", spec).get("rayClusterSpec", spec)
        for spec, document in zip(specs, every_document(), strict=True)
        if document["kind"] != "CronJob"
    ]


def pods(cluster):
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def pinned(package):
    text = (ROOT / "constraints.txt").read_text()
    return re.search(rf"^{package}==(\S+)$", text, re.MULTILINE)[1]


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_valid_for_its_kind(name):
    assert documents(name)
    for document in documents(name):
        jsonschema.validate(document, schema_for(document))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("rayjob.yaml", ("spec", "shutdownAfterJobFinish"), True),
        ("rayjob.yaml", ("spec", "backoffLimit"), "three"),
        ("rayjob.yaml", ("spec", "rayClusterSpec", "autoscalerOptions", "version"), "v3"),
        ("raycronjob.yaml", ("spec", "concurrencyPolicy"), "Forbid"),
        ("cronjob.yaml", ("spec", "headGroupSpec", "template", "spec", "container"), []),
    ],
)
def test_the_check_finds_what_kubectl_would_refuse(name, path, value):
    document = documents(name)[0]
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema_for(document))


def test_all_three_describe_one_cluster_of_the_pinned_versions():
    first, *others = clusters()
    assert len(others) == 2
    assert all(other == first for other in others)
    assert first["rayVersion"] == pinned("ray")
    dockerfile = (FOLDER / "Dockerfile").read_text()
    assert f"FROM rayproject/ray:{pinned('ray')}-py312-gpu" in dockerfile
    assert "-c constraints.txt" in dockerfile
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    image = f"registry.example.com/danbooru-index:{version}-ray{pinned('ray')}"
    used = set(re.findall(r"image: (\S+)", "".join((FOLDER / n).read_text() for n in MANIFESTS)))
    assert used == {image}
    assert image in dockerfile


def test_gpu_nodes_come_from_none_on_spot_machines():
    cluster = clusters()[0]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [group] = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]
    keys = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
    assert {"nvidia.com/gpu", "kubernetes.io/spot"} <= keys


def test_what_a_container_requests_is_its_limit_and_probes_are_kuberays():
    """A GPU's request must equal its limit; memory beyond its request is what gets a pod evicted.
    KubeRay adds probes that know its tokens to containers that have none.
    """
    for cluster in clusters():
        for pod in pods(cluster):
            for container in pod["containers"]:
                resources = container["resources"]
                assert resources["requests"] == resources["limits"]
                assert not {"livenessProbe", "readinessProbe"} & container.keys()
            names = {volume["name"] for volume in pod["volumes"]}
            assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == names


def test_a_job_resumes_is_taken_down_and_never_overlaps():
    job = documents("rayjob.yaml")[0]["spec"]
    nightly = documents("raycronjob.yaml")[0]["spec"]["jobTemplate"]
    for spec in (job, nightly):
        assert spec["shutdownAfterJobFinishes"]
        assert spec["backoffLimit"] > 0
        assert spec["submitterConfig"]["backoffLimit"] == 0
    cron = documents("cronjob.yaml")[1]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    assert cron["jobTemplate"]["spec"]["backoffLimit"] > 0


def test_what_they_run_are_commands_of_this_project():
    job = documents("rayjob.yaml")[0]["spec"]["entrypoint"].split()
    nightly = documents("raycronjob.yaml")[0]["spec"]["jobTemplate"]["entrypoint"].split()
    container = documents("cronjob.yaml")[1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    submitted = container["containers"][0]["command"]
    for words in (job, nightly, submitted[submitted.index("--") + 1 :]):
        assert words[0] == "python"
        assert (ROOT / words[1]).is_file()
        parsed = make_parser().parse_args([Path(words[1]).stem, *words[2:]])
        assert parsed.accept_left_out, "3 would be run again"
        assert parsed.log_format == "json"


def test_the_token_is_a_secret_by_name_and_is_in_no_file():
    for path in FOLDER.iterdir():
        text = path.read_text()
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        assert not SECRET.search("\n".join(lines)), path
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token", "secretName": "danbooru-index-ray-token"}
