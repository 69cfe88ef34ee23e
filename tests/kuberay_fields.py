"""The fields of Kubernetes and KubeRay (ray.io/v1) that the files of cluster/ use; any other one is refused.

tests/unit/test_cluster_files.py holds them against KubeRay's own schemas, where these are at hand.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|K|M|G|T)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class Fields(BaseModel):
    """What Kubernetes reads from JSON: numbers are numbers and texts are texts."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Fields):
    name: Name


class Manifest(Fields):
    apiVersion: str
    kind: str
    metadata: Metadata


class Resources(Fields):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity] | None = None


class Mount(Fields):
    name: Name
    mountPath: str


class ClaimReference(Fields):
    claimName: Name


class EmptyFolder(Fields):
    medium: Literal["", "Memory"]
    sizeLimit: Quantity


class Volume(Fields):
    name: Name
    persistentVolumeClaim: ClaimReference | None = None
    emptyDir: EmptyFolder | None = None


class Toleration(Fields):
    key: str
    operator: Literal["Exists", "Equal"]
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class Container(Fields):
    name: Name
    image: str
    resources: Resources
    volumeMounts: list[Mount]


class Pod(Fields):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]
    nodeSelector: dict[str, str] | None = None
    tolerations: list[Toleration] | None = None


class PodTemplate(Fields):
    spec: Pod


class HeadGroup(Fields):
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(HeadGroup):
    groupName: Name
    replicas: Annotated[int, Field(ge=0)]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]


class AuthOptions(Fields):
    mode: Literal["token", "disabled"]


class AutoscalerOptions(Fields):
    version: Literal["v1", "v2"]
    idleTimeoutSeconds: Annotated[int, Field(ge=0)]


class ClusterSpec(Fields):
    rayVersion: str
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]
    enableInTreeAutoscaling: bool | None = None
    autoscalerOptions: AutoscalerOptions | None = None


class RayCluster(Manifest):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    spec: ClusterSpec


class JobSpec(Fields):
    entrypoint: str
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    backoffLimit: Annotated[int, Field(ge=0)]
    rayClusterSpec: ClusterSpec


class RayJob(Manifest):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    spec: JobSpec


class ClaimSpec(Fields):
    accessModes: list[Literal["ReadWriteMany"]]
    storageClassName: str
    resources: Resources


class Claim(Manifest):
    apiVersion: Literal["v1"]
    kind: Literal["PersistentVolumeClaim"]
    spec: ClaimSpec


KINDS: dict[str, type[Manifest]] = {"RayCluster": RayCluster, "RayJob": RayJob, "PersistentVolumeClaim": Claim}


def list_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every field of a model and of the models in it, as a dotted path; the name under metadata is Kubernetes' own."""
    found = []
    for name, info in model.model_fields.items():
        found.append(f"{prefix}{name}")
        if name != "metadata":
            found += [field for part in _models(info.annotation) for field in list_fields(part, f"{prefix}{name}.")]
    return found


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
