"""What deploy/ ships fits its schemas, and the service that it deploys: settings, ports, paths, times, metrics."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cloudcoil.models.prometheus_operator.v1 import ServiceMonitor
from kubernetes_validate.utils import ValidationError, latest_version, validate
from prometheus_client.parser import text_string_to_metric_families

from testkit.photographs import PHOTOS
from testkit.programs import need
from testkit.servers import ROOT
from vision.core.errors import KINDS, Code
from vision.settings import PREFIX, Settings

DEPLOY = ROOT / "deploy"
README = (DEPLOY / "README.md").read_text()
HAPROXY = (DEPLOY / "haproxy.cfg").read_text()
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
FILES = [file for file in sorted(DEPLOY.rglob("*")) if file.suffix in (".yaml", ".cfg", ".json", ".md", ".py")]

ENTRY = f"someone:{'0' * 64}"
"""What stands for VISION_API_KEYS, which the files take from a secret."""

OUTSIDE = {"instance", "job", "namespace", "pod"}
"""Labels that Prometheus adds to what it reads."""


def load(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


KUBERNETES: dict[str, Any] = {
    manifest["kind"]: manifest
    for manifest in (load(f"kubernetes/{name}") for name in load("kubernetes/kustomization.yaml")["resources"])
}
POD = KUBERNETES["Deployment"]["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]
COMPOSE = load("compose.yaml")
REPLICAS = [COMPOSE["services"]["vision-1"], COMPOSE["services"]["vision-2"]]
ALERTS = [rule for group in load("prometheus/alerts.yaml")["groups"] for rule in group["rules"]]


# --- schemas -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.29", latest_version()])
def test_kubernetes_manifests_fit_their_schemas(version: str) -> None:
    manifests = [manifest for kind, manifest in KUBERNETES.items() if kind != "ServiceMonitor"]
    for manifest in [*manifests, load("kubernetes/network-policy-otlp.yaml")]:
        validate(manifest, version, strict=True)
    misspelt = copy.deepcopy(KUBERNETES["Deployment"])
    misspelt["spec"]["template"]["spec"]["terminationGracePeriod"] = 90
    with pytest.raises(ValidationError, match="terminationGracePeriod"):
        validate(misspelt, version, strict=True)


def test_the_service_monitor_fits_its_crd() -> None:
    """The model of the CRD drops what it does not know: nothing of ours may be dropped."""
    manifest = KUBERNETES["ServiceMonitor"]
    known = ServiceMonitor.model_validate(manifest).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert known == manifest


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_fit_the_compose_specification(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(DEPLOY / name)]
    check = subprocess.run(command, capture_output=True, text=True)
    assert check.returncode == 0, check.stdout


def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    need("haproxy", "haproxy")
    need("openssl", "openssl")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "certificate.pem.key"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    subprocess.run([*request, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    environment = {"LISTEN": ":8443", "CERTIFICATE": str(certificate), "REPLICA_1": "[::1]:1", "REPLICA_2": "[::1]:2"}
    command = ["haproxy", "-c", "-f", str(DEPLOY / "haproxy.cfg")]
    check = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_alerts_do_as_their_tests_say(tmp_path: Path) -> None:
    """Also each query of the dashboard is one that Prometheus reads."""
    need("promtool", "prometheus")
    rules = [{"record": f"panel:{i}", "expr": filled(expression)} for i, expression in enumerate(dashboard_queries())]
    panels = tmp_path / "panels.yaml"
    panels.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for arguments in (
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "alerts.test.yaml"],
        ["check", "rules", str(panels)],
    ):
        check = subprocess.run(["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True)
        assert check.returncode == 0, check.stdout + check.stderr


# --- the service that they deploy ----------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_a_setting_that_is_named_exists(file: Path) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(rf"\b{PREFIX}[A-Z][A-Z_]*", file.read_text())) <= known


@pytest.mark.parametrize("environment", [*(replica["environment"] for replica in REPLICAS), CONTAINER["env"]])
def test_the_service_takes_the_settings(environment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(environment, list):
        environment = {one["name"]: one.get("value", ENTRY) for one in environment}
    for name, value in environment.items():
        monkeypatch.setenv(name, ENTRY if value.startswith("${") else value)
    settings = Settings()
    assert settings.api_keys
    assert settings.drain_seconds > 0


def test_ports_agree() -> None:
    port = int(CONTAINER["args"][CONTAINER["args"].index("--port") + 1])
    [named] = CONTAINER["ports"]
    [door] = KUBERNETES["Service"]["spec"]["ports"]
    [endpoint] = KUBERNETES["ServiceMonitor"]["spec"]["endpoints"]
    [rule] = KUBERNETES["NetworkPolicy"]["spec"]["ingress"]
    assert named["containerPort"] == port
    assert door["targetPort"] == named["name"]
    assert endpoint["port"] == door["name"]
    assert [allowed["port"] for allowed in rule["ports"]] == [port]
    assert {probe["httpGet"]["port"] for probe in probes()} == {named["name"]}

    proxy = COMPOSE["services"]["proxy"]
    targets = [f"{name}:{port}" for name in ("vision-1", "vision-2")]
    [scrape] = load("prometheus/prometheus.yaml")["scrape_configs"]
    assert [replica["command"] for replica in REPLICAS] == [CONTAINER["args"]] * 2
    assert [proxy["environment"][name] for name in ("REPLICA_1", "REPLICA_2")] == targets
    assert scrape["static_configs"] == [{"targets": targets}]
    assert proxy["ports"] == [f"443{proxy['environment']['LISTEN']}"]
    assert all(f"127.0.0.1:{port}/readyz" in " ".join(replica["healthcheck"]["test"]) for replica in REPLICAS)


def test_paths_that_are_asked_answer(client: httpx.Client) -> None:
    [check] = re.findall(r"option httpchk GET (\S+)", HAPROXY)
    [endpoint] = KUBERNETES["ServiceMonitor"]["spec"]["endpoints"]
    for path in [check, endpoint["path"], *(probe["httpGet"]["path"] for probe in probes())]:
        assert client.get(path).status_code == 200, path
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/livez"  # a busy runner is no reason to kill all
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == check == "/readyz"


def probes() -> list[dict[str, Any]]:
    return [CONTAINER[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]


def test_times_leave_room_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM: the proxy and the endpoints learn of it while the replica drains; what was accepted is answered."""
    for one in CONTAINER["env"]:
        monkeypatch.setenv(one["name"], one.get("value", ENTRY))
    settings = Settings()
    assert {replica["environment"]["VISION_DRAIN_SECONDS"] for replica in REPLICAS} == {f"{settings.drain_seconds:g}"}
    needed = settings.drain_seconds + settings.request_seconds
    assert POD["terminationGracePeriodSeconds"] >= needed + 10
    assert all(seconds(replica["stop_grace_period"]) >= needed + 10 for replica in REPLICAS)

    [(inter, fall)] = re.findall(r"check inter (\w+) fall (\d+)", HAPROXY)
    assert timeout("check") + int(fall) * seconds(inter) < settings.drain_seconds
    probe = CONTAINER["readinessProbe"]
    assert probe["timeoutSeconds"] + probe["failureThreshold"] * probe["periodSeconds"] < settings.drain_seconds
    assert timeout("server") > settings.request_seconds
    assert timeout("client") > settings.request_seconds
    [body] = re.findall(r"wait-for-body time (\w+)", HAPROXY)
    assert seconds(body) <= settings.body_seconds


def timeout(name: str) -> float:
    [value] = re.findall(rf"^ +timeout {name} (\w+)$", HAPROXY, re.MULTILINE)
    return seconds(value)


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_nothing_runs_with_more_rights_than_it_needs() -> None:
    context = CONTAINER["securityContext"]
    assert POD["securityContext"]["runAsNonRoot"]
    assert POD["securityContext"]["runAsUser"] > 0
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not POD["automountServiceAccountToken"]
    assert not POD["enableServiceLinks"]  # VISION_... variables of a Service named vision would end the start
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "nvidia.com/gpu" in CONTAINER["resources"]["limits"]
    assert KUBERNETES["NetworkPolicy"]["spec"]["egress"] == []
    assert "Egress" in KUBERNETES["NetworkPolicy"]["spec"]["policyTypes"]

    assert COMPOSE["networks"]["inside"]["internal"]
    assert all(replica["networks"] == ["inside"] for replica in REPLICAS)
    for service in COMPOSE["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert all(replica["user"] == f"{POD['securityContext']['runAsUser']}:1034" for replica in REPLICAS)


def test_what_is_written_has_a_place() -> None:
    """The root is read-only: BentoML's home must lie under /tmp, which must not."""
    [home] = [one["value"] for one in CONTAINER["env"] if one["name"] == "BENTOML_HOME"]
    assert Path(home).is_relative_to("/tmp")  # noqa: S108 - a container's own
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]  # noqa: S108
    assert all(replica["environment"]["BENTOML_HOME"] == home for replica in REPLICAS)
    assert all(replica["tmpfs"] == ["/tmp"] for replica in REPLICAS)  # noqa: S108


def test_keys_come_from_a_secret() -> None:
    [keys] = [one for one in CONTAINER["env"] if one["name"] == "VISION_API_KEYS"]
    assert "secretKeyRef" in keys["valueFrom"]
    assert all(replica["environment"]["VISION_API_KEYS"].startswith("${VISION_API_KEYS:?") for replica in REPLICAS)


def test_the_proxy_speaks_as_the_service_does() -> None:
    errors = re.findall(r"http-error status (\d+) .* lf-string '(.*)'", HAPROXY)
    assert {status for status, _ in errors} == {"404", "408", "500", "502", "503", "504"}
    for status, body in errors:
        error = json.loads(body)["error"]
        kind = KINDS[Code(error["code"])]
        assert error.keys() == {"code", "message", "retryable", "request_id"}
        assert kind.status == int(status) or status == "502"  # only a proxy has a replica that goes away
        assert kind.retryable == error["retryable"]


# --- metrics -------------------------------------------------------------------------------------


@pytest.fixture
def measured(client: httpx.Client) -> dict[str, set[str]]:
    """The labels of each metric of the service after a request that succeeded and one that was refused."""
    photo = PHOTOS["bus"].read_bytes()
    assert client.post("/analyze", files={"images": photo}).status_code == 200
    assert client.post("/classify", content=photo, headers={"content-type": "text/plain"}).status_code == 415
    families = text_string_to_metric_families(client.get("/metrics").text)
    on_gpus = {f"vision_gpu_{what}": {"gpu"} for what in ("memory_used_bytes", "memory_bytes", "utilization")}
    return {sample.name: set(sample.labels) for family in families for sample in family.samples} | on_gpus


def test_queries_ask_for_metrics_that_the_service_has(measured: dict[str, set[str]]) -> None:
    adapter = load("kubernetes/prometheus-adapter.yaml")["rules"]["custom"]
    [metric] = KUBERNETES["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == adapter[0]["name"]["as"] == "vision_queue_images"
    queries = [*dashboard_queries(), *(rule["expr"] for rule in ALERTS), adapter[0]["seriesQuery"]]
    for query in queries:
        labels: set[str] = set(OUTSIDE)
        for name, selectors in re.findall(r"\b(vision_\w+|up\b)(?:\{(.*?)\})?", query):
            present = measured[name] | OUTSIDE if name != "up" else OUTSIDE
            assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selectors)) <= present, query
            labels |= present
        for names in re.findall(r"\bby \((.*?)\)", query):
            assert set(re.split(r",\s*", names)) <= labels, query
    asked = set(re.findall(r"\bvision_[a-z_]+", " ".join(queries)))
    own = {name for name in measured if name.startswith("vision_") and not name.endswith(("_created", "_sum"))}
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in own} == {
        re.sub("_(bucket|count|sum)$", "", name) for name in asked
    }


def dashboard_queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def filled(query: str) -> str:
    """A query as Grafana sends it."""
    return query.replace("$__rate_interval", "1m")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_a_runbook(alert: dict[str, Any]) -> None:
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert ROOT / file == DEPLOY / "README.md"
    sections = re.split(r"^#+ ", README, flags=re.MULTILINE)
    [runbook] = [text for text in sections if text.partition("\n")[0].lower() == anchor]
    assert len(runbook.split()) > 20, "says what to do"


def test_dashboard_panels_lie_side_by_side() -> None:
    places = sorted(
        (panel["gridPos"]["y"], panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel in DASHBOARD["panels"]
    )
    for (y, x, width), (next_y, next_x, _) in pairwise(places):
        assert next_y > y or next_x >= x + width
