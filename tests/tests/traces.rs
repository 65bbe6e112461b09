//! Traces of a real run, as a collector gets them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use g2rl_tests::cluster::{Cluster, WorkerOptions};
use g2rl_tests::journal::StepShape;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

const STEPS: u64 = 3;
const SHAPE: StepShape = StepShape { groups: 6, group_size: 4, minibatches: 2 };

/// Keeps what it is sent.
#[derive(Debug, Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    /// `service.name` and `g2rl.run`.
    resources: Arc<Mutex<BTreeSet<(String, String)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_resource in request.into_inner().resource_spans {
            let attributes = of_resource.resource.unwrap_or_default().attributes;
            let named = |name| text(&attributes, name).unwrap_or_default();
            self.resources.lock().unwrap().insert((named("service.name"), named("g2rl.run")));
            let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            self.spans.lock().unwrap().extend(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn value<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.as_ref()?.value.as_ref()
}

fn text(attributes: &[KeyValue], name: &str) -> Option<String> {
    match value(attributes, name)? {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn number(span: &Span, name: &str) -> i64 {
    match value(&span.attributes, name) {
        Some(Value::IntValue(number)) => *number,
        other => panic!("{name} of {} is {other:?}", span.name),
    }
}

#[test]
fn a_collector_gets_each_step_with_what_each_rank_did() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let collector = Collector::default();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let service = Server::builder().add_service(TraceServiceServer::new(collector.clone()));
    runtime.spawn(service.serve_with_incoming(TcpListenerStream::new(listener)));

    let (steps, endpoint) = (format!("run.steps={STEPS}"), format!("export.otlp=http://{address}"));
    let settings = [&steps, &endpoint, "run.name=traced", "evaluation.every=2", "cluster.min_workers=2"];
    let mut cluster = Cluster::start(&settings, None).unwrap();
    for name in ["a", "b"] {
        cluster.add(name, &WorkerOptions::default()).unwrap();
    }
    // It ends after the last spans are sent.
    let run = cluster.finish().unwrap();
    let journal = run.journal().unwrap();
    journal.check(STEPS, SHAPE).unwrap();
    let lengths: i64 = journal.rollouts().unwrap().iter().map(|row| row.tokens as i64).sum();

    let resource = ("g2rl".to_owned(), "traced".to_owned());
    assert_eq!(*collector.resources.lock().unwrap(), BTreeSet::from([resource]));
    let spans = collector.spans.lock().unwrap().clone();
    let by_id: BTreeMap<_, _> = spans.iter().map(|span| (&span.span_id, span)).collect();
    assert_eq!(by_id.len(), spans.len(), "each span once");
    let (mut steps, mut tokens) = (BTreeSet::new(), 0);
    for root in spans.iter().filter(|span| span.name == "step") {
        assert!(root.parent_span_id.is_empty() && steps.insert(number(root, "g2rl.step")));
        let of_step = |name: &'static str| {
            spans.iter().filter(move |span| span.trace_id == root.trace_id && span.name == name)
        };
        let workers = |name| -> Vec<String> {
            let mut workers: Vec<_> =
                of_step(name).map(|span| text(&span.attributes, "g2rl.worker").unwrap()).collect();
            workers.sort();
            workers
        };
        // Two mini-batches on two ranks, with the same optimizer step on both.
        for name in ["gradients", "apply"] {
            assert_eq!(workers(name), ["a-cpu", "a-cpu", "b-cpu", "b-cpu"], "{name}");
        }
        let both = workers("lease").into_iter().collect::<BTreeSet<_>>();
        assert_eq!(both, ["a-cpu", "b-cpu"].map(str::to_owned).into());
        let groups = of_step("shape").map(|span| number(span, "g2rl.group")).collect::<BTreeSet<_>>();
        assert_eq!(groups.len() as u64, SHAPE.groups);
        let rollouts: i64 = of_step("lease").map(|span| number(span, "g2rl.rollouts")).sum();
        assert_eq!(rollouts, (SHAPE.groups * SHAPE.group_size) as i64);
        tokens += of_step("lease").map(|span| number(span, "g2rl.response_tokens")).sum::<i64>();
        for (name, parent) in [
            ("rollout", "step"),
            ("update", "step"),
            ("lease", "rollout"),
            ("shape", "rollout"),
            ("apply", "update"),
        ] {
            for span in of_step(name) {
                let above = by_id[&span.parent_span_id];
                assert_eq!(above.name, parent, "of {name}");
                let inside = above.start_time_unix_nano <= span.start_time_unix_nano
                    && span.end_time_unix_nano <= above.end_time_unix_nano;
                assert!(inside && span.start_time_unix_nano <= span.end_time_unix_nano, "{name} in {parent}");
            }
        }
    }
    assert_eq!(steps, (0..STEPS as i64).collect());
    assert_eq!(tokens, lengths);
    assert!(spans.iter().any(|span| span.name == "evaluation"));
}
