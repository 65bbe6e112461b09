//! Types of the Kubernetes API, with unknown fields refused: a document is read into its type and written again, and
//! nothing of it may be missing then.

use k8s_openapi::api::batch::v1::{Job, JobTemplateSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `monitoring.coreos.com/v1`, as much of it as is used. The operator's schema is in no published crate.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    pub(super) spec: PodMonitorSpec,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodMonitorSpec {
    pub(super) selector: LabelSelector,
    pub(super) pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodMetricsEndpoint {
    pub(super) port: String,
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    action: String,
    target_label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_labels: Option<Vec<String>>,
}

/// `jobset.x-k8s.io/v1alpha2`, as much of it as is used.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JobSet {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    pub(super) spec: JobSetSpec,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct JobSetSpec {
    success_policy: SuccessPolicy,
    failure_policy: FailurePolicy,
    pub(super) replicated_jobs: Vec<ReplicatedJob>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SuccessPolicy {
    operator: String,
    target_replicated_jobs: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FailurePolicy {
    max_restarts: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ReplicatedJob {
    pub(super) name: String,
    replicas: u32,
    pub(super) template: JobTemplateSpec,
}

/// What a document has and its type has not.
fn unknown(document: &Value, typed: &Value, path: &str) -> Vec<String> {
    match (document, typed) {
        (Value::Object(fields), Value::Object(known)) => fields
            .iter()
            .flat_map(|(name, value)| match known.get(name) {
                Some(typed) => unknown(value, typed, &format!("{path}.{name}")),
                None => vec![format!("{path}.{name}")],
            })
            .collect(),
        (Value::Array(items), Value::Array(known)) if items.len() == known.len() => {
            let pairs = items.iter().zip(known).enumerate();
            pairs.flat_map(|(at, (item, typed))| unknown(item, typed, &format!("{path}[{at}]"))).collect()
        }
        (document, typed) if document == typed => Vec::new(),
        (document, typed) => vec![format!("{path}: {document} is read as {typed}")],
    }
}

/// A document as its type.
pub(super) fn typed<T: Serialize + DeserializeOwned>(document: &Value) -> T {
    let name = format!("{} {}", document["kind"], document["metadata"]["name"]);
    let object: T =
        serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let unknown = unknown(document, &serde_json::to_value(&object).unwrap(), "");
    assert!(unknown.is_empty(), "{name} has what its type has not: {unknown:?}");
    object
}

/// Reads a document into the type that its kind names.
pub(super) fn check(document: &Value) {
    let version = document["apiVersion"].as_str().unwrap();
    match (version, document["kind"].as_str().unwrap()) {
        ("v1", "ConfigMap") => drop(typed::<ConfigMap>(document)),
        ("v1", "PersistentVolumeClaim") => drop(typed::<PersistentVolumeClaim>(document)),
        ("v1", "Secret") => drop(typed::<Secret>(document)),
        ("v1", "Service") => drop(typed::<Service>(document)),
        ("batch/v1", "Job") => drop(typed::<Job>(document)),
        ("networking.k8s.io/v1", "NetworkPolicy") => drop(typed::<NetworkPolicy>(document)),
        ("policy/v1", "PodDisruptionBudget") => drop(typed::<PodDisruptionBudget>(document)),
        ("monitoring.coreos.com/v1", "PodMonitor") => drop(typed::<PodMonitor>(document)),
        ("jobset.x-k8s.io/v1alpha2", "JobSet") => drop(typed::<JobSet>(document)),
        other => panic!("no type for {other:?}"),
    }
}

#[test]
fn a_field_that_the_api_does_not_know_is_found() {
    let service = |spec: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {spec}");
        std::panic::catch_unwind(|| check(&super::documents(&text)[0]))
    };
    assert!(service("{clusterIP: None, ports: [{port: 1, targetPort: http}]}").is_ok());
    assert!(service("{clusterIp: None}").is_err());
    assert!(service("{ports: [{port: 1, targetport: http}]}").is_err());
    assert!(service("{ports: [{port: one}]}").is_err());
}
