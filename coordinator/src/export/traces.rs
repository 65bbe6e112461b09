//! Traces of steps over OTLP, by option: what the coordinator and each rank did when.
//!
//! In: the machine's events and effects, as the shell hears and performs them. Out: one trace for each training step and
//! each evaluation, sent in batches from a thread of its own:
//!
//! ```text
//! step 12
//! ├─ rollout
//! │  ├─ lease (worker, group, rollouts, tokens)       one for each lease of a rank
//! │  └─ judge (group), shape (group)                  on the coordinator
//! ├─ update
//! │  └─ gradients, apply (worker, mini-batch)         one for each rank
//! └─ checkpoint (worker)                              also when the next step has begun: then of that step
//! ```
//!
//! Durations of ranks are those that the coordinator sees, from the command to the answer, so that clocks of several machines
//! need not agree. Must not stop or delay a run: spans that cannot be sent are dropped, and the library counts them.
//!
//! Invariants: nothing is kept for what has ended; when a step ends, what is still open of it ends too.

use std::collections::BTreeMap;

use anyhow::Context as _;
use g2rl_common::ids::{GroupId, LeaseId, MinibatchIndex, RolloutId, StepIndex, WorkerId};
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};

use crate::state::{Effect, Event};

/// What a span is about, so that its end finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Lease(LeaseId),
    Judge(GroupId),
    Shape(GroupId),
    Gradients(WorkerId, MinibatchIndex),
    Apply(WorkerId, MinibatchIndex),
}

/// A span under way.
#[derive(Debug)]
struct Open {
    span: Span,
    /// Rollouts that are still to come.
    rollouts: u32,
    tokens: i64,
}

/// The step or evaluation under way.
#[derive(Debug)]
struct Activity {
    root: Context,
    /// Rollout, then update.
    phase: Context,
    updates: bool,
    open: BTreeMap<Key, Open>,
}

/// The traces of a run; nothing if they are not wanted.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    exporter: Option<Exporter>,
}

#[derive(Debug)]
struct Exporter {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    activity: Option<Activity>,
    checkpoints: BTreeMap<StepIndex, Span>,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Traces {
    /// Traces that go to a collector's gRPC address; none if it is empty. Must be called inside the runtime.
    ///
    /// # Errors
    /// If the address cannot be used. Nobody has to answer there.
    pub(crate) fn open(endpoint: &str, run: &str) -> anyhow::Result<Self> {
        if endpoint.is_empty() {
            return Ok(Self::default());
        }
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
        let exporter = exporter.with_context(|| format!("export.otlp = {endpoint:?}"))?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter);
        Ok(Self::with(provider.with_resource(resource(run)).build()))
    }

    fn with(provider: SdkTracerProvider) -> Self {
        let tracer = provider.tracer("g2rl");
        let exporter = Exporter { provider, tracer, activity: None, checkpoints: BTreeMap::new() };
        Self { exporter: Some(exporter) }
    }

    /// The shell hears this.
    pub(crate) fn event(&mut self, event: &Event) {
        if let Some(exporter) = &mut self.exporter {
            exporter.event(event);
        }
    }

    /// The shell performs this.
    pub(crate) fn effect(&mut self, effect: &Effect) {
        if let Some(exporter) = &mut self.exporter {
            exporter.effect(effect);
        }
    }

    /// Sends what is left; blocks for some seconds at most.
    pub(crate) fn close(&mut self) {
        let Some(mut exporter) = self.exporter.take() else { return };
        exporter.end_activity();
        exporter.checkpoints.clear();
        if let Err(error) = exporter.provider.shutdown() {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

fn resource(run: &str) -> Resource {
    let run = KeyValue::new("g2rl.run", run.to_owned());
    Resource::builder().with_service_name("g2rl").with_attribute(run).build()
}

impl Exporter {
    fn begin_activity(&mut self, name: &'static str, step: StepIndex, rollouts: u32) {
        self.end_activity();
        let mut root = self.tracer.span_builder(name).with_kind(SpanKind::Internal);
        root.attributes = Some(vec![
            KeyValue::new("g2rl.step", number(step.0)),
            KeyValue::new("g2rl.rollouts", i64::from(rollouts)),
        ]);
        let root = Context::new().with_span(self.tracer.build_with_context(root, &Context::new()));
        let phase = self.phase("rollout", &root);
        self.activity = Some(Activity { root, phase, updates: false, open: BTreeMap::new() });
    }

    fn phase(&self, name: &'static str, root: &Context) -> Context {
        root.with_span(self.tracer.start_with_context(name, root))
    }

    fn end_activity(&mut self) {
        let Some(activity) = self.activity.take() else { return };
        activity.open.into_values().for_each(|mut open| open.span.end());
        activity.phase.span().end();
        activity.root.span().end();
    }

    /// The first mini-batch ends the phase of rollouts.
    fn begin_update(&mut self) {
        let Some(activity) = self.activity.as_ref().filter(|activity| !activity.updates) else { return };
        activity.phase.span().end();
        let phase = self.phase("update", &activity.root);
        if let Some(activity) = &mut self.activity {
            (activity.phase, activity.updates) = (phase, true);
        }
    }

    fn open(&mut self, name: &'static str, key: Key, rollouts: u32, attributes: Vec<KeyValue>) {
        let Some(activity) = &mut self.activity else { return };
        let kind = match key {
            Key::Judge(_) | Key::Shape(_) => SpanKind::Internal,
            // A command to a rank, and its answer.
            Key::Lease(_) | Key::Gradients(..) | Key::Apply(..) => SpanKind::Client,
        };
        let mut builder = self.tracer.span_builder(name).with_kind(kind);
        builder.attributes = Some(attributes);
        let span = self.tracer.build_with_context(builder, &activity.phase);
        activity.open.insert(key, Open { span, rollouts, tokens: 0 });
    }

    fn close(&mut self, key: &Key, status: Status) {
        let found = self.activity.as_mut().and_then(|activity| activity.open.remove(key));
        if let Some(mut open) = found {
            open.span.set_status(status);
            open.span.end();
        }
    }

    fn arrived(&mut self, lease: LeaseId, rollout: RolloutId, tokens: u32) {
        let Some(activity) = &mut self.activity else { return };
        if !activity.open.contains_key(&Key::Judge(rollout.group)) {
            let group = KeyValue::new("g2rl.group", number(rollout.group.0));
            self.open("judge", Key::Judge(rollout.group), 0, vec![group]);
        }
        let Some(activity) = &mut self.activity else { return };
        let Some(open) = activity.open.get_mut(&Key::Lease(lease)) else { return };
        open.rollouts = open.rollouts.saturating_sub(1);
        open.tokens += i64::from(tokens);
        if open.rollouts == 0 {
            open.span.set_attribute(KeyValue::new("g2rl.response_tokens", open.tokens));
            self.close(&Key::Lease(lease), Status::Ok);
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::RolloutArrived { lease, rollout, response_tokens, .. } => {
                self.arrived(*lease, *rollout, *response_tokens);
            }
            Event::LeaseRejected { lease, detail, .. } => {
                self.close(&Key::Lease(*lease), Status::error(detail.clone()));
            }
            Event::GroupShaped { group, .. } => self.close(&Key::Shape(*group), Status::Ok),
            Event::GradientsReady { worker, minibatch, .. } => {
                self.close(&Key::Gradients(worker.clone(), *minibatch), Status::Ok);
            }
            Event::MinibatchApplied { worker, minibatch, .. } => {
                self.close(&Key::Apply(worker.clone(), *minibatch), Status::Ok);
            }
            _ => {}
        }
    }

    fn effect(&mut self, effect: &Effect) {
        let of_rank = |worker: &WorkerId| KeyValue::new("g2rl.worker", worker.0.clone());
        let of_minibatch = |minibatch: &MinibatchIndex| KeyValue::new("g2rl.minibatch", number(minibatch.0));
        match effect {
            Effect::StepStarted { step, rollouts } => self.begin_activity("step", *step, *rollouts),
            Effect::EvaluationStarted { step, rollouts } => {
                self.begin_activity("evaluation", *step, *rollouts);
            }
            Effect::StepCompleted(_) | Effect::EvaluationCompleted { .. } | Effect::Finished(_) => {
                self.end_activity();
            }
            Effect::Lease { worker, order, .. } => {
                let attributes = vec![
                    of_rank(worker),
                    KeyValue::new("g2rl.group", number(order.group.0)),
                    KeyValue::new("g2rl.rollouts", i64::from(order.rollouts)),
                ];
                self.open("lease", Key::Lease(order.lease), order.rollouts, attributes);
            }
            Effect::ShapeGroup { group, .. } => {
                self.close(&Key::Judge(*group), Status::Ok);
                let attributes = vec![KeyValue::new("g2rl.group", number(group.0))];
                self.open("shape", Key::Shape(*group), 0, attributes);
            }
            Effect::TrainMinibatch { worker, minibatch, sequences, .. } => {
                self.begin_update();
                let sequences = KeyValue::new("g2rl.sequences", number(sequences.len() as u64));
                let attributes = vec![of_rank(worker), of_minibatch(minibatch), sequences];
                self.open("gradients", Key::Gradients(worker.clone(), *minibatch), 0, attributes);
            }
            Effect::Apply { worker, minibatch, .. } => {
                let attributes = vec![of_rank(worker), of_minibatch(minibatch)];
                self.open("apply", Key::Apply(worker.clone(), *minibatch), 0, attributes);
            }
            Effect::EpochEnded { cause, .. } => self.epoch_ended(cause),
            Effect::SaveCheckpoint { worker, step, .. } => {
                let parent =
                    self.activity.as_ref().map_or_else(Context::new, |activity| activity.root.clone());
                let mut builder = self.tracer.span_builder("checkpoint").with_kind(SpanKind::Client);
                builder.attributes = Some(vec![of_rank(worker), KeyValue::new("g2rl.step", number(step.0))]);
                let span = self.tracer.build_with_context(builder, &parent);
                self.checkpoints.insert(*step, span);
            }
            Effect::CheckpointWritten { step } => drop(self.checkpoints.remove(step)),
            Effect::CheckpointFailed { step, error } => {
                if let Some(mut span) = self.checkpoints.remove(step) {
                    span.set_status(Status::error(error.clone()));
                }
            }
            _ => {}
        }
    }

    /// What ranks were to do is done by others, or again.
    fn epoch_ended(&mut self, cause: &str) {
        let Some(activity) = &mut self.activity else { return };
        let cause = cause.to_owned();
        activity.root.span().add_event("epoch ended", vec![KeyValue::new("g2rl.cause", cause.clone())]);
        let lost = |key: &Key| matches!(key, Key::Gradients(..) | Key::Apply(..));
        let keys: Vec<Key> = activity.open.keys().filter(|key| lost(key)).cloned().collect();
        keys.iter().for_each(|key| self.close(key, Status::error(cause.clone())));
    }
}

#[cfg(test)]
mod tests {
    use g2rl_common::ids::{GroupEpoch, PolicyVersion};
    use g2rl_common::rollout::Purpose;
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SpanData};

    use super::*;
    use crate::state::{LeaseOrder, ProblemRef, ResponseSource};

    fn lease(lease: u64, rollouts: u32) -> Effect {
        let order = LeaseOrder {
            lease: LeaseId(lease),
            group: GroupId(7),
            policy_version: PolicyVersion(0),
            problem: ProblemRef { purpose: Purpose::Train, index: 0 },
            first_rollout: 0,
            rollouts,
            stream_offset: 0,
            source: ResponseSource::Generated,
        };
        Effect::Lease { worker: WorkerId::from("a"), epoch: GroupEpoch(1), order }
    }

    fn arrived(lease: u64, index: u32) -> Event {
        Event::RolloutArrived {
            worker: WorkerId::from("a"),
            epoch: GroupEpoch(1),
            lease: LeaseId(lease),
            rollout: RolloutId { group: GroupId(7), index },
            policy_version: PolicyVersion(0),
            prompt_tokens: 3,
            response_tokens: 5,
        }
    }

    fn find<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
        spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("no span {name}"))
    }

    #[test]
    fn a_step_is_one_trace_over_coordinator_and_ranks() {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let mut traces = Traces::with(provider);
        traces.effect(&Effect::StepStarted { step: StepIndex(3), rollouts: 2 });
        traces.effect(&lease(1, 2));
        traces.event(&arrived(1, 0));
        traces.event(&arrived(1, 1));
        traces.effect(&Effect::ShapeGroup {
            group: GroupId(7),
            step: StepIndex(3),
            problem: ProblemRef { purpose: Purpose::Train, index: 0 },
        });
        traces.event(&Event::GroupShaped { group: GroupId(7), advantages: vec![0.0; 2], skipped: false });
        let (worker, epoch, step, minibatch) =
            (WorkerId::from("a"), GroupEpoch(1), StepIndex(3), MinibatchIndex(0));
        let train = Effect::TrainMinibatch {
            worker: worker.clone(),
            epoch,
            step,
            minibatch,
            learning_rate: 0.1,
            sequences: Vec::new(),
        };
        traces.effect(&train);
        // The rank is lost, its gradients are computed by another epoch.
        traces.effect(&Effect::EpochEnded { epoch, cause: "killed".into() });
        traces.effect(&train);
        traces.effect(&Effect::Apply { worker, epoch, step, minibatch });
        traces.effect(&Effect::EvaluationStarted { step: StepIndex(4), rollouts: 1 });
        let spans = exporter.get_finished_spans().unwrap();
        let root = find(&spans, "step");
        let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
        assert_eq!(["lease", "judge", "shape", "gradients", "apply"].map(count), [1, 1, 1, 2, 1]);
        assert!(spans.iter().all(|span| span.span_context.trace_id() == root.span_context.trace_id()));
        for (name, parent) in
            [("rollout", "step"), ("update", "step"), ("lease", "rollout"), ("apply", "update")]
        {
            let parent = find(&spans, parent).span_context.span_id();
            assert_eq!(find(&spans, name).parent_span_id, parent, "{name}");
        }
        let tokens = KeyValue::new("g2rl.response_tokens", 10);
        assert!(find(&spans, "lease").attributes.contains(&tokens));
        assert_eq!(find(&spans, "gradients").status, Status::error("killed"));
        assert_eq!(root.events.len(), 1);
    }

    #[test]
    fn without_an_address_nothing_is_traced() {
        let mut traces = Traces::open("", "run").unwrap();
        traces.effect(&Effect::StepStarted { step: StepIndex(0), rollouts: 1 });
        assert!(traces.exporter.is_none());
        traces.close();
    }
}
