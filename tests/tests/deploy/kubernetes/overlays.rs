//! What the API's types do not say: names that must fit each other, and the run that is configured.

use std::collections::{BTreeMap, BTreeSet};

use g2rl_common::config::RunConfig;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::schema::{JobSet, PodMonitor, check, typed};
use super::{overlay, render, secrets};

const OVERLAYS: [&str; 4] = ["cpu-demo", "single-node-8gpu", "multi-node", "jobset"];

fn of_kind<'a>(documents: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a Value> {
    documents.iter().filter(move |document| document["kind"] == kind)
}

/// Coordinator and worker, whether they are Jobs or parts of a JobSet.
fn jobs(documents: &[Value]) -> BTreeMap<String, JobSpec> {
    let alone = of_kind(documents, "Job").map(typed::<Job>).map(|job| {
        let name = job.metadata.name.unwrap();
        (name.trim_start_matches("g2rl-").to_owned(), job.spec.unwrap())
    });
    let sets = of_kind(documents, "JobSet").flat_map(|set| typed::<JobSet>(set).spec.replicated_jobs);
    alone.chain(sets.map(|job| (job.name, job.template.spec.unwrap()))).collect()
}

fn pod(job: &JobSpec) -> &PodSpec {
    job.template.spec.as_ref().unwrap()
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

/// Every name that a pod uses is there: volumes, ports of probes, ConfigMaps, Secrets, claims.
fn check_names(pod: &PodSpec, known: &BTreeSet<(String, String)>) {
    let volumes = pod.volumes.as_deref().unwrap();
    let names: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    for container in containers(pod) {
        let mounts = container.volume_mounts.iter().flatten();
        assert!(mounts.clone().all(|mount| names.contains(mount.name.as_str())), "{container:?}");
        assert!(mounts.clone().all(|mount| !mount.name.is_empty()) && mounts.count() > 0);
        let ports: BTreeSet<&str> =
            container.ports.iter().flatten().filter_map(|port| port.name.as_deref()).collect();
        let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        for probe in probes.into_iter().flatten() {
            let IntOrString::String(port) = &probe.http_get.as_ref().unwrap().port else {
                panic!("a probe's port is named: {probe:?}")
            };
            assert!(ports.contains(port.as_str()), "no port {port}");
        }
        let security = container.security_context.as_ref().unwrap();
        assert_eq!(security.read_only_root_filesystem, Some(true));
        assert_eq!(security.allow_privilege_escalation, Some(false));
    }
    assert_eq!(pod.security_context.as_ref().unwrap().run_as_non_root, Some(true));
    for volume in volumes {
        let uses = [
            ("ConfigMap", volume.config_map.as_ref().map(|map| map.name.clone())),
            ("Secret", volume.secret.as_ref().and_then(|secret| secret.secret_name.clone())),
            (
                "PersistentVolumeClaim",
                volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone()),
            ),
        ];
        for (kind, name) in uses.into_iter().filter_map(|(kind, name)| Some((kind.to_owned(), name?))) {
            assert!(known.contains(&(kind.clone(), name.clone())), "no {kind} {name} in {known:?}");
        }
    }
}

/// What the API server would refuse, beyond types.
fn check_job(job: &JobSpec) {
    let pod = pod(job);
    assert_eq!(pod.restart_policy.as_deref(), Some("Never"), "a podFailurePolicy needs it");
    assert_eq!(job.pod_replacement_policy.as_deref(), Some("Failed"), "a podFailurePolicy needs it");
    let names: BTreeSet<&str> = pod.containers.iter().map(|container| container.name.as_str()).collect();
    for rule in &job.pod_failure_policy.as_ref().unwrap().rules {
        let named = rule.on_exit_codes.as_ref().and_then(|codes| codes.container_name.as_deref());
        assert!(named.is_none_or(|name| names.contains(name)), "{rule:?}");
        let indexed = job.backoff_limit_per_index.is_some();
        assert!(rule.action != "FailIndex" || indexed, "FailIndex needs backoffLimitPerIndex");
    }
    let indexed = job.completion_mode.as_deref() == Some("Indexed");
    assert!(job.backoff_limit_per_index.is_none() || indexed, "backoffLimitPerIndex needs an Indexed Job");
    assert_eq!(job.completions, job.parallelism);
}

fn matches(selector: Option<&BTreeMap<String, String>>, job: &JobSpec) -> bool {
    let labels = job.template.metadata.as_ref().and_then(|metadata| metadata.labels.clone()).unwrap();
    selector.unwrap().iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn configuration(documents: &[Value]) -> RunConfig {
    let maps: Vec<ConfigMap> = of_kind(documents, "ConfigMap").map(typed).collect();
    assert_eq!(maps.len(), 1);
    RunConfig::from_toml(&maps[0].data.as_ref().unwrap()["run.toml"]).unwrap()
}

/// Ranks of a worker's pod: its GPUs, or one on a CPU.
fn ranks_of_a_pod(pod: &PodSpec) -> u32 {
    let limits = pod.containers[0].resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let gpus = limits.and_then(|limits| limits.get("nvidia.com/gpu"));
    gpus.map_or(1, |gpus| gpus.0.parse().unwrap())
}

#[test]
fn every_overlay_has_the_apis_types_and_fits_together() {
    let directory = tempfile::tempdir().unwrap();
    let secrets = secrets(directory.path());
    secrets.iter().for_each(check);
    for name in OVERLAYS {
        let Some(documents) = render(&overlay(name)) else { return };
        documents.iter().for_each(check);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let known: BTreeSet<(String, String)> = documents
            .iter()
            .chain(&secrets)
            .map(|document| (text(&document["kind"]), text(&document["metadata"]["name"])))
            .collect();
        let jobs = jobs(&documents);
        assert_eq!(jobs.keys().collect::<Vec<_>>(), ["coordinator", "worker"], "{name}");
        for job in jobs.values() {
            check_job(job);
            check_names(pod(job), &known);
        }
        let (coordinator, worker) = (&jobs["coordinator"], &jobs["worker"]);

        let service: Service = typed(of_kind(&documents, "Service").next().unwrap());
        let spec = service.spec.unwrap();
        assert!(matches(spec.selector.as_ref(), coordinator) && !matches(spec.selector.as_ref(), worker));
        let url = format!("https://{}:7700", service.metadata.name.unwrap());
        assert!(pod(worker).containers[0].args.as_ref().unwrap().contains(&url), "{name}");

        let config = configuration(&documents);
        let pods = worker.completions.unwrap() as u32;
        assert_eq!(config.cluster.max_workers, pods * ranks_of_a_pod(pod(worker)), "{name}");
        for budget in of_kind(&documents, "PodDisruptionBudget").map(typed::<PodDisruptionBudget>) {
            let spec = budget.spec.unwrap();
            let selector = spec.selector.unwrap().match_labels;
            let Some(IntOrString::Int(least)) = spec.min_available else { panic!("a number: {name}") };
            if matches(selector.as_ref(), worker) {
                let ranks = least as u32 * ranks_of_a_pod(pod(worker));
                assert!(ranks >= config.cluster.min_workers, "{name}: an eviction stops the run");
            }
        }
        for monitor in of_kind(&documents, "PodMonitor").map(typed::<PodMonitor>) {
            let job = if matches(monitor.spec.selector.match_labels.as_ref(), worker) {
                worker
            } else {
                coordinator
            };
            let ports = pod(job).containers[0].ports.iter().flatten();
            let ports: BTreeSet<&str> = ports.filter_map(|port| port.name.as_deref()).collect();
            for endpoint in &monitor.spec.pod_metrics_endpoints {
                assert!(ports.contains(endpoint.port.as_str()), "{name}: no port {}", endpoint.port);
            }
        }
        println!("{name}: {} documents", documents.len());
    }
}
