"""Enough of the controllers of Job, JobSet, PyTorchJob and TrainJob, and of Kueue, to run our jobs on the test server.

Pods come from the job's own template, restarts and ends from its own policies. Kueue admits, preempts and requeues as
the test asks. They act between two requests, as one who is always quick.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.kube.admission import admit
from tests.kube.resources import JOBS, PODS, Resource
from tests.kube.server import KubeServer
from tests.kube.store import now

Manifest = dict[str, Any]
_TICK_S = 0.03
_CUSTOM = {
    "jobset": [("jobset.x-k8s.io", "v1alpha2", "jobsets", "JobSet")],
    "pytorchjob": [("kubeflow.org", "v1", "pytorchjobs", "PyTorchJob")],
    "trainjob": [
        ("trainer.kubeflow.org", "v1alpha1", "trainjobs", "TrainJob"),
        ("trainer.kubeflow.org", "v1alpha1", "trainingruntimes", "TrainingRuntime"),
    ],
}
_WORKLOADS = ("kueue.x-k8s.io", "v1beta1", "workloads", "Workload")
_QUEUE = "kueue.x-k8s.io/queue-name"


@dataclass
class Kueue:
    """
    :param admit_after_s: infinity never admits
    :param preempt: how often, each after `preempt_after_s` of running
    :param notices: kinds of jobs whose integration is on
    """

    admit_after_s: float = 0.3
    preempt: int = 0
    preempt_after_s: float = 0.8
    notices: tuple[str, ...] = ("Job", "JobSet", "TrainJob", "PyTorchJob")
    since_s: dict[str, float] = field(default_factory=dict)


class Controllers:
    """
    :param engines: those that the cluster serves besides `job`
    :param failed_for_s: what an engine takes to act on a pod that failed; kubelets and its own eyes are slow
    :param elsewhere: another cluster has the pods, as with MultiKueue; all of them end well at once
    """

    def __init__(
        self,
        kube: KubeServer,
        *engines: str,
        kueue: Kueue | None = None,
        elsewhere: bool = False,
        failed_for_s: float = 0.5,
    ) -> None:
        self.kube, self.kueue, self.elsewhere, self.failed_for_s = kube, kueue, elsewhere, failed_for_s
        self.kinds: dict[str, Resource] = {"Job": JOBS}
        for served in (made for engine in engines for made in _CUSTOM.get(engine, ())):
            self.kinds[served[3]] = kube.serve(*served)
        if kueue:
            self.kinds["Workload"] = kube.serve(*_WORKLOADS)
        self.failed_at_s: dict[str, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def jobs(self) -> list[Manifest]:
        return self.kube._call(lambda: copy.deepcopy(list(self._jobs())))

    def objects(self, kind: str) -> list[Manifest]:
        return self.kube._call(lambda: copy.deepcopy(self._store.list(self.kinds[kind])))

    def change(self, kind: str, work: Callable[[Manifest], None]) -> None:
        """Let a person edit every object of a kind."""

        def edit() -> None:
            for obj in self._store.list(self.kinds[kind]):
                edited = copy.deepcopy(obj)
                work(edited)
                self._store.update(self.kinds[kind], edited)

        self.kube._call(edit)

    @property
    def _store(self):
        return self.kube._store

    def _jobs(self) -> Iterator[Manifest]:
        for kind in ("Job", "JobSet", "PyTorchJob", "TrainJob"):
            if kind in self.kinds:
                yield from self._store.list(self.kinds[kind])

    def _run(self) -> None:
        while not self._stopping.wait(_TICK_S):
            with contextlib.suppress(TimeoutError):
                self.kube._call(self._reconcile)

    def _reconcile(self) -> None:
        for job in list(self._jobs()):
            if "deletionTimestamp" in job["metadata"] or _is_finished(job):
                continue
            _Job(self, self._queue(job)).reconcile()

    def _queue(self, job: Manifest) -> Manifest:
        """The job as Kueue leaves it."""
        queued = _QUEUE in job["metadata"].get("labels", {})
        if not (self.kueue and queued and job["kind"] in self.kueue.notices):
            return job
        return _Queue(self, job).reconcile()


class _Queue:
    """Kueue's part in one job."""

    def __init__(self, controllers: Controllers, job: Manifest) -> None:
        self.controllers, self.job, self.kueue = controllers, job, controllers.kueue
        self.store, self.uid = controllers._store, job["metadata"]["uid"]

    def reconcile(self) -> Manifest:
        workload = self._workload()
        if not workload["spec"].get("active", True):
            return self._suspend(True)
        since_s = self.kueue.since_s.setdefault(self.uid, time.monotonic())
        waited_s = time.monotonic() - since_s
        if _suspension(self.job)["suspend"]:
            if waited_s >= self.kueue.admit_after_s and not _owned_pods(self.store, self.job):
                return self._admit(workload)
        elif not _runs(self.store, self.job):
            self.kueue.since_s[self.uid] = time.monotonic()
        elif self.kueue.preempt and waited_s >= self.kueue.preempt_after_s:
            self.kueue.preempt -= 1
            return self._evict(workload)
        return self.job

    def _workload(self) -> Manifest:
        resource, metadata = self.controllers.kinds["Workload"], self.job["metadata"]
        name = f"{self.job['kind'].lower()}-{metadata['name']}"
        if found := self.store.find(resource, metadata["namespace"], name):
            return found
        owner = _owner(self.job)
        labels = {"kueue.x-k8s.io/job-uid": self.uid}
        body = {"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]}}
        body["spec"] = {"queueName": metadata["labels"][_QUEUE], "active": True, "podSets": []}
        status = _conditions(
            {}, QuotaReserved=("False", "Pending", "couldn't assign flavors: insufficient unused quota")
        )
        return self.store.create(resource, metadata["namespace"], body | {"status": status})

    def _admit(self, workload: Manifest) -> Manifest:
        yes = {"QuotaReserved": ("True", "QuotaReserved", ""), "Admitted": ("True", "Admitted", "")}
        self._tell(workload, **yes, Evicted=("False", "QuotaReserved", ""))
        return self._suspend(False)

    def _evict(self, workload: Manifest) -> Manifest:
        why = ("True", "Preempted", "Preempted to accommodate a workload of higher priority")
        no = ("False", "Pending", "couldn't assign flavors: insufficient unused quota")
        self._tell(
            workload, Evicted=why, Requeued=why, QuotaReserved=no, Admitted=("False", "NoReservation", "")
        )
        return self._suspend(True)

    def _tell(self, workload: Manifest, **conditions: tuple[str, str, str]) -> None:
        status = _conditions(workload.get("status", {}), **conditions)
        self.store.update(self.controllers.kinds["Workload"], workload | {"status": status})

    def _suspend(self, suspend: bool) -> Manifest:
        self.kueue.since_s[self.uid] = time.monotonic()
        job = copy.deepcopy(self.job)
        _suspension(job)["suspend"] = suspend
        return self.store.update(self.controllers.kinds[job["kind"]], job)


class _Job:
    """An engine's part in one job."""

    def __init__(self, controllers: Controllers, job: Manifest) -> None:
        self.controllers, self.job = controllers, job
        self.store, self.kubelet = controllers._store, controllers.kube._kubelet
        self.pods = _owned_pods(self.store, job)
        self.alive = [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]

    def reconcile(self) -> None:
        if _suspension(self.job)["suspend"]:
            self._delete(self.alive)
        elif failed := [
            pod for pod in self.alive if pod["status"].get("phase") == "Failed" and not _is_old(pod)
        ]:
            since_s = self.controllers.failed_at_s.setdefault(failed[0]["metadata"]["uid"], time.monotonic())
            if time.monotonic() - since_s >= self.controllers.failed_for_s:
                self._take_failure(failed[0])
        elif self._is_done():
            kinds = {"JobSet": "Completed", "PyTorchJob": "Succeeded"}
            self._say(**{kinds.get(self.job["kind"], "Complete"): ("True", "Done", "it is done")})
        else:
            self._fill_up()
            self._say()

    def _is_done(self) -> bool:
        if self.controllers.elsewhere:
            return True
        done = {_rank(pod) for pod in self.alive if pod["status"].get("phase") == "Succeeded"}
        return 0 in done if self.job["kind"] == "PyTorchJob" else len(done) == self._nodes()

    def _fill_up(self) -> None:
        there = {_rank(pod) for pod in self.pods if not _is_old(pod)}
        for rank in range(self._nodes()):
            if rank not in there:
                self._create(rank)

    def _take_failure(self, pod: Manifest) -> None:
        code, permanent = _exit_code(pod), self._permanent_codes()
        disrupted = any(c["type"] == "DisruptionTarget" for c in pod["status"].get("conditions") or [])
        restarts = self.job.get("status", {}).get("restarts", 0)
        if code in permanent:
            words = f"Container failed with exit code {code} matching FailJob rule at index 1"
            self._say(Failed=("True", "PodFailurePolicy", words))
        elif restarts >= self._max_restarts() and not disrupted:
            self._say(Failed=("True", "BackoffLimitExceeded", "the limit of restarts is reached"))
        else:
            self._restart(pod, restarts if disrupted else restarts + 1)

    def _restart(self, pod: Manifest, restarts: int) -> None:
        if self.job["kind"] == "Job":  # a Job leaves what failed
            self.store.update(PODS, pod | {"metadata": pod["metadata"] | {"finalizers": ["test/old"]}})
        else:
            self._delete(self.alive if self.job["kind"] != "PyTorchJob" else [pod])
        counted = {"failed": restarts} if self.job["kind"] == "Job" else {}
        status = {**self.job.get("status", {}), "restarts": restarts, **counted}
        self.job = self.store.update(self.controllers.kinds[self.job["kind"]], self.job | {"status": status})

    def _create(self, rank: int) -> None:
        template, metadata = copy.deepcopy(self._template()), self.job["metadata"]
        labels = {**template["metadata"].get("labels", {}), **self._labels(rank)}
        index = {"batch.kubernetes.io/job-completion-index": str(rank)}
        annotations = {**template["metadata"].get("annotations", {}), **index}
        body = {
            "metadata": {
                "name": f"{metadata['name']}-{rank}-{secrets.token_hex(3)[:5]}",
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [_owner(self.job)],
            },
            "spec": template["spec"] | {"restartPolicy": "Never"},
        }
        pod = admit(self.store, PODS, metadata["namespace"], body, strict=True)
        self.kubelet.accept(self.store.create(PODS, metadata["namespace"], pod))

    def _labels(self, rank: int) -> dict[str, str]:
        metadata = self.job["metadata"]
        if self.job["kind"] == "PyTorchJob":
            told = {"job-name": metadata["name"], "replica-type": "worker" if rank else "master"}
            told["replica-index"] = str(max(rank - 1, 0))
            return {f"training.kubeflow.org/{key}": value for key, value in told.items()}
        return {
            "batch.kubernetes.io/job-completion-index": str(rank),
            "batch.kubernetes.io/controller-uid": metadata["uid"],
            "batch.kubernetes.io/job-name": metadata["name"],
            "jobset.sigs.k8s.io/jobset-name": metadata["name"],
        }

    def _delete(self, pods: list[Manifest]) -> None:
        for pod in pods:
            self.kubelet.delete(pod)

    def _say(self, **conditions: tuple[str, str, str]) -> None:
        status = _conditions(self.job.get("status", {}), **conditions)
        self.store.update(self.controllers.kinds[self.job["kind"]], self.job | {"status": status})

    def _jobset(self) -> Manifest:
        """The spec of the JobSet, be it behind a TrainJob."""
        if self.job["kind"] == "JobSet":
            return self.job["spec"]
        metadata, resource = self.job["metadata"], self.controllers.kinds["TrainingRuntime"]
        runtime = self.store.get(resource, metadata["namespace"], self.job["spec"]["runtimeRef"]["name"])
        return runtime["spec"]["template"]["spec"]

    def _node_job(self) -> Manifest:
        if self.job["kind"] == "Job":
            return self.job["spec"]
        return self._jobset()["replicatedJobs"][0]["template"]["spec"]

    def _template(self) -> Manifest:
        if self.job["kind"] == "PyTorchJob":
            return self.job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        return self._node_job()["template"]

    def _nodes(self) -> int:
        spec = self.job["spec"]
        if self.job["kind"] == "PyTorchJob":
            return sum(replica["replicas"] for replica in spec["pytorchReplicaSpecs"].values())
        if self.job["kind"] == "TrainJob":
            return spec["trainer"]["numNodes"]
        return self._node_job()["parallelism"]

    def _permanent_codes(self) -> list[int]:
        if self.job["kind"] == "PyTorchJob":
            return list(range(1, 128))
        rules = self._node_job()["podFailurePolicy"]["rules"]
        return next(rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule)

    def _max_restarts(self) -> int:
        spec = self.job["spec"]
        if self.job["kind"] in ("JobSet", "TrainJob"):
            return self._jobset()["failurePolicy"]["maxRestarts"]
        if self.job["kind"] == "Job":
            return spec["backoffLimit"]
        master = spec["pytorchReplicaSpecs"]["Master"]
        return 0 if master["restartPolicy"] == "Never" else spec["runPolicy"]["backoffLimit"]


def _suspension(job: Manifest) -> Manifest:
    return job["spec"]["runPolicy"] if job["kind"] == "PyTorchJob" else job["spec"]


def _owner(job: Manifest) -> Manifest:
    identity = {"apiVersion": job["apiVersion"], "kind": job["kind"], "controller": True}
    return {
        **identity,
        "name": job["metadata"]["name"],
        "uid": job["metadata"]["uid"],
        "blockOwnerDeletion": True,
    }


def _owned_pods(store: Any, job: Manifest) -> list[Manifest]:
    uid = job["metadata"]["uid"]
    return [
        pod
        for pod in store.list(PODS)
        if uid in {o["uid"] for o in pod["metadata"].get("ownerReferences", [])}
    ]


def _runs(store: Any, job: Manifest) -> bool:
    return any(pod["status"].get("phase") == "Running" for pod in _owned_pods(store, job))


def _is_old(pod: Manifest) -> bool:
    return "finalizers" in pod["metadata"]


def _rank(pod: Manifest) -> int:
    return int(pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"])


def _exit_code(pod: Manifest) -> int | None:
    statuses = pod["status"].get("containerStatuses") or [{}]
    return statuses[0].get("state", {}).get("terminated", {}).get("exitCode")


def _conditions(status: Manifest, **told: tuple[str, str, str]) -> Manifest:
    known = {condition["type"]: condition for condition in status.get("conditions", [])}
    for kind, (value, reason, message) in told.items():
        known[kind] = {
            "type": kind,
            "status": value,
            "reason": reason,
            "message": message,
            "lastTransitionTime": now(),
        }
    return {**status, "conditions": list(known.values())}


def _is_finished(job: Manifest) -> bool:
    ends = {c["type"] for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
    return bool(ends & {"Complete", "Completed", "Succeeded", "Failed"})
