//! How a run begins: anew, from a checkpoint, or where an earlier process of the coordinator stopped.
//!
//! In: the log that process left. Out: a machine restored from its records, the rollouts and judgements beside
//! them, and the log to go on with. A log that cannot be gone on from, and one whose policy nobody holds any more,
//! is dropped: another course of the run begins at the checkpoint.

use g2rl_common::ids::{GroupEpoch, PolicyVersion};
use g2rl_proto::Hello;
use tonic::Status;

use super::store::Store;
use super::{RunInputs, Shell};
use crate::lineage;
use crate::standing::Standing;
use crate::state::{Coordinator, Effect, Event, Record, RunPlan};
use crate::wal::{Contents, Header, Wal};

/// The machine's plan.
pub(super) fn plan(run: &RunInputs) -> RunPlan {
    let (train, evaluation) = (run.train.len() as u32, run.evaluation.len() as u32);
    RunPlan {
        response_lengths: run.response_lengths.clone(),
        ..RunPlan::from_config(&run.config, train, evaluation, run.resume)
    }
}

/// What must be the same for records to mean the same: all but who works where and may join, how long anything may
/// take, and what is kept.
fn setup(run: &RunInputs) -> String {
    let mut config = run.config.clone();
    (config.cluster, config.checkpoint, config.security) = Default::default();
    (config.watchdog, config.export) = Default::default();
    (config.run.dir, config.run.steps) = Default::default();
    let (train, evaluation) = (run.train.len(), run.evaluation.len());
    format!("# {train} training problems, {evaluation} held-out problems\n{}", config.to_toml())
}

/// The newest epoch that the workers may have heard of.
fn newest_epoch(left: &Contents) -> GroupEpoch {
    let epochs = left.entries.iter().filter_map(|entry| match entry.record {
        Record::Position { epoch, .. } | Record::EpochBegan { epoch } => Some(epoch),
        _ => None,
    });
    epochs.max().unwrap_or_default()
}

/// What a log holds, ready to go on.
struct Restored {
    machine: Coordinator,
    store: Store,
    again: Vec<Effect>,
    wal: Wal,
}

impl Shell {
    /// Takes up what an earlier process left, or begins at the checkpoint.
    pub(super) async fn begin(&mut self, left: Option<Contents>) -> anyhow::Result<()> {
        let Some(left) = left else { return self.begin_course() };
        if left.torn > 0 {
            tracing::warn!(bytes = left.torn, "the write-ahead log has a torn end, which is cut off");
        }
        let restored = match self.restore(&left).await {
            Ok(restored) => restored,
            Err(reason) => {
                tracing::warn!(reason, "the write-ahead log is dropped: the run goes on from its checkpoint");
                self.run_id = lineage::next(&left.header.run);
                self.machine = Coordinator::after(plan(&self.run), newest_epoch(&left));
                return self.begin_course();
            }
        };
        let status = restored.machine.status();
        let (step, policy_version) = (status.steps_done, status.policy_version);
        let rollouts = restored.store.rollouts();
        tracing::info!(%step, %policy_version, rollouts, "the run goes on where its coordinator stopped");
        self.run_id = left.header.run;
        (self.machine, self.store) = (restored.machine, restored.store);
        self.journal.begin_log(restored.wal);
        // Rows of the step under way may be ahead of its records, or may have been lost with the process.
        self.journal.go_back(step);
        self.exports.begin(step);
        self.store.outcomes().for_each(|outcome| self.journal.group(outcome));
        for entry in &left.entries {
            if let Record::MinibatchSkipped { step, minibatch, rollouts } = &entry.record {
                self.journal.minibatch_skipped(*step, *minibatch, rollouts);
            }
        }
        restored.again.into_iter().for_each(|effect| self.perform(effect));
        Ok(())
    }

    /// Begins at the checkpoint, or at the first policy; what came after it is dropped.
    fn begin_course(&mut self) -> anyhow::Result<()> {
        let header = Header { run: self.run_id.clone(), setup: setup(&self.run) };
        self.journal.begin_log(Wal::create(&self.dir, header)?);
        let steps_done = self.run.resume.map(|checkpoint| checkpoint.steps_done).unwrap_or_default();
        self.journal.go_back(steps_done);
        self.exports.begin(steps_done);
        Ok(())
    }

    async fn restore(&self, left: &Contents) -> Result<Restored, String> {
        // 1. Whether it is this run's.
        if left.header.setup != setup(&self.run) {
            return Err("the configuration or the data has changed".into());
        }
        if self.run.config.optimizer.shard {
            return Err("the parts of a divided optimizer end with their epoch".into());
        }
        // 2. The machine.
        let records: Vec<Record> = left.entries.iter().map(|entry| entry.record.clone()).collect();
        let (machine, again) =
            Coordinator::restore(plan(&self.run), &records).map_err(|error| error.to_string())?;
        let (known, saved) = (machine.newest_policy(), self.run.policy_version);
        if known < saved {
            return Err(format!("it ends at policy version {known}, the checkpoint has {saved}"));
        }
        // 3. What the records are about.
        let store = self.stored(left, &machine).await?;
        let wal = Wal::append_to(&self.dir, left).map_err(|error| error.to_string())?;
        Ok(Restored { machine, store, again, wal })
    }

    async fn stored(&self, left: &Contents, machine: &Coordinator) -> Result<Store, String> {
        let (mut store, step) = (Store::default(), machine.status().steps_done);
        for entry in &left.entries {
            match &entry.record {
                Record::RolloutAccepted { rollout, .. } => {
                    let kept = entry.rollout.clone().filter(|kept| kept.id == *rollout);
                    store.keep(kept.ok_or_else(|| format!("rollout {rollout} is not beside its record"))?);
                }
                Record::RolloutVerified { rollout } => {
                    let judgement = entry.judgement.clone();
                    let missing = || format!("the judgement of rollout {rollout} is not beside its record");
                    store.judge(*rollout, judgement.ok_or_else(missing)?);
                }
                Record::PromptSkipped { group } => store.forget(*group),
                Record::GroupShaped { group, .. } => {
                    let problem = machine.problem_of(*group).ok_or("a group has no problem")?;
                    let shaped = self.pool.shape_again((*group, step, problem), store.group(*group)).await;
                    store.shaped(shaped.map_err(|error| format!("{error:#}"))?);
                }
                _ => {}
            }
        }
        Ok(store)
    }

    /// Nobody holds the policy that the log ends with: another course begins at the checkpoint. Workers connect
    /// again and read it.
    pub(super) fn start_over(&mut self, lost: PolicyVersion) {
        let checkpoint = self.run.policy_version;
        tracing::warn!(%lost, %checkpoint, "no worker holds the policy: the run goes on from its checkpoint");
        for (worker, connection) in std::mem::take(&mut self.connections) {
            self.standings.set(&worker, Standing::Lost);
            let status = Status::unavailable("the run goes on from its checkpoint");
            // A stream that cannot take even this is gone anyway.
            let _ = connection.outgoing.try_send(Err(status));
        }
        self.run_id = lineage::next(&self.run_id);
        let epoch = self.machine.status().epoch;
        (self.store, self.machine) = (Store::default(), Coordinator::after(plan(&self.run), epoch));
        self.queue.clear();
        self.outbox.clear();
        if let Err(error) = self.begin_course() {
            self.queue.push_back(Event::ShellFailed { error: format!("{error:#}") });
        }
    }

    /// Why a worker shows that this coordinator's log is too old, if it does.
    pub(super) fn is_behind(&self, hello: &Hello) -> Option<String> {
        let (run, version) = hello.held.as_ref()?;
        let (worker, ours) = (&hello.worker, &self.run_id);
        lineage::is_later(run, ours).then(|| {
            format!(
                "worker {worker} holds policy version {version} of {run}, a later course of the run than {ours}, which \
                 this run directory knows: it is older than the workers. Start the coordinator with the newest run \
                 directory, or end the workers to go on from this one's checkpoint"
            )
        })
    }
}
