"""What the formats around an engine may look like: the fields that their documentation has, as nested mappings.

A mapping names its fields; a name with `*` in front must be there; a list holds the shape of its items; `ANY` is a
mapping with free names; a type is what a value must be. Source: the Kubernetes API reference (v1, apps/v1,
autoscaling/v2), keda.sh, the Compose specification, Prometheus' documentation of alerting rules.
"""

from __future__ import annotations

from typing import Any

ANY = {"": str}
_META = {"*name": str, "labels": ANY, "annotations": ANY}
_PROBE = {
    "*httpGet": {"*path": str, "*port": str},
    "periodSeconds": int,
    "timeoutSeconds": int,
    "*failureThreshold": int,
}
_SECRET = {"secretKeyRef": {"*name": str, "*key": str, "optional": bool}}
_VOLUME = {
    "*name": str,
    "persistentVolumeClaim": {"*claimName": str},
    "emptyDir": {"medium": str, "sizeLimit": str},
    "configMap": {"*name": str},
    "hostPath": {"*path": str, "type": str},
}
_CONTAINER = {
    "*name": str,
    "*image": str,
    "command": [str],
    "args": [str],
    "ports": [{"name": str, "*containerPort": int}],
    "env": [{"*name": str, "value": str, "valueFrom": _SECRET}],
    "*resources": {"requests": ANY, "*limits": ANY},
    "*securityContext": {"*allowPrivilegeEscalation": bool, "capabilities": {"drop": [str]}},
    "*startupProbe": _PROBE,
    "*readinessProbe": _PROBE,
    "*livenessProbe": _PROBE,
    "lifecycle": {"preStop": {"exec": {"command": [str]}}},
    "volumeMounts": [{"*name": str, "*mountPath": str, "readOnly": bool}],
}
_POD = {
    "*enableServiceLinks": bool,
    "automountServiceAccountToken": bool,
    "*terminationGracePeriodSeconds": int,
    "securityContext": {"seccompProfile": {"*type": str}},
    "*containers": [_CONTAINER],
    "volumes": [_VOLUME],
}
_BEHAVIOR = {
    direction: {
        "stabilizationWindowSeconds": int,
        "policies": [{"*type": str, "*value": int, "*periodSeconds": int}],
    }
    for direction in ("scaleUp", "scaleDown")
}
_TARGET = {"apiVersion": str, "kind": str, "*name": str}
_HEAD = {"*apiVersion": str, "*kind": str, "*metadata": _META}
KUBERNETES: dict[str, Any] = {
    "ConfigMap": {**_HEAD, "data": ANY},
    "PersistentVolumeClaim": {
        **_HEAD,
        "*spec": {"*accessModes": [str], "*resources": {"requests": {"*storage": str}}},
    },
    "Deployment": {
        **_HEAD,
        "*spec": {
            "replicas": int,
            "strategy": {"type": str},
            "progressDeadlineSeconds": int,
            "*selector": {"matchLabels": ANY},
            "*template": {"metadata": {"labels": ANY, "annotations": ANY}, "*spec": _POD},
        },
    },
    "Service": {
        **_HEAD,
        "*spec": {"*selector": ANY, "*ports": [{"name": str, "*port": int, "targetPort": str}]},
    },
    "HorizontalPodAutoscaler": {
        **_HEAD,
        "*spec": {
            "*scaleTargetRef": _TARGET,
            "minReplicas": int,
            "*maxReplicas": int,
            "metrics": [
                {
                    "*type": str,
                    "pods": {"*metric": {"*name": str}, "*target": {"*type": str, "averageValue": str}},
                }
            ],
            "behavior": _BEHAVIOR,
        },
    },
    "ScaledObject": {
        **_HEAD,
        "*spec": {
            "*scaleTargetRef": _TARGET,
            "minReplicaCount": int,
            "maxReplicaCount": int,
            "pollingInterval": int,
            "cooldownPeriod": int,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _BEHAVIOR}},
            "*triggers": [
                {
                    "*type": str,
                    "metricType": str,
                    "*metadata": {"*serverAddress": str, "*query": str, "*threshold": str},
                }
            ],
        },
    },
}
COMPOSE: dict[str, Any] = {
    "name": str,
    "*services": {
        "*engine": {
            "*image": str,
            "entrypoint": [str],
            "command": [str],
            "ports": [str],
            "environment": ANY,
            "volumes": [{"*type": str, "source": str, "*target": str, "read_only": bool}],
            "configs": [{"*source": str, "target": str}],
            "shm_size": str,
            "mem_limit": str,
            "restart": str,
            "stop_grace_period": str,
            "security_opt": [str],
            "devices": [str],
            "group_add": [str],
            "deploy": {
                "resources": {"reservations": {"devices": [{"*driver": str, "count": int, "*capabilities": [str]}]}}
            },
            "healthcheck": {
                "*test": [str],
                "start_period": str,
                "interval": str,
                "timeout": str,
                "retries": int,
            },
        }
    },
    "volumes": {"cache": {}},
    "configs": {"engine": {"*content": str}},
}
ALERTS: dict[str, Any] = {
    "*groups": [
        {
            "*name": str,
            "*rules": [
                {"*alert": str, "*expr": str, "for": str, "labels": ANY, "annotations": ANY},
            ],
        }
    ]
}


def misfits(value: Any, shape: Any, where: str = "") -> list[str]:
    """Return what a parsed document has that its shape has not, and what it lacks."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return [f"{where} is no mapping"]
        return _misfits_of_mapping(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{where} is no list"]
        return [each for index, item in enumerate(value) for each in misfits(item, shape[0], f"{where}[{index}]")]
    is_right = isinstance(value, shape) and (shape is bool or not isinstance(value, bool))
    return [] if is_right else [f"{where} is {value!r}, not {shape.__name__}"]


def _misfits_of_mapping(value: dict[Any, Any], shape: dict[str, Any], where: str) -> list[str]:
    if shape is ANY:
        return [each for key, item in value.items() for each in misfits(item, str, f"{where}.{key}")]
    known = {name.lstrip("*"): inner for name, inner in shape.items()}
    found = [f"{where}.{name[1:]} is missing" for name in shape if name.startswith("*") and name[1:] not in value]
    for key, item in value.items():
        found += misfits(item, known[key], f"{where}.{key}") if key in known else [f"{where}.{key} is unknown"]
    return found
