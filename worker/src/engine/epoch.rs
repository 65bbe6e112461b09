//! One epoch's process group, and how a policy gets to every rank of it.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use g2rl_common::ids::{GroupEpoch, PolicyVersion};
use g2rl_ffi::FfiError;
use g2rl_ffi::process_group::{Backend, ProcessGroup, ProcessGroupOptions, TcpStore};
use g2rl_proto::EpochPlan;
use tch::{Device, Kind, Tensor};

use super::policy::Policy;
use crate::failpoint;
use crate::model::files::OPTIMIZER_FILE;
use crate::model::shard::{Piece, Shard};
use crate::pulse::{self, Work};
use crate::update::UpdateError;
use crate::update::offload::{CHUNK, chunks};

/// Time rank 0 waits for a store operation, and the others for the store to appear.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// Longer than store and group take to give up by themselves.
const RENDEZVOUS_SLACK: Duration = Duration::from_secs(10);

/// The store of an epoch that this rank was asked to host.
#[derive(Debug)]
pub(super) struct HostedStore {
    epoch: GroupEpoch,
    store: TcpStore,
}

impl HostedStore {
    /// Opens a store on a port of the system's choice.
    pub(super) fn open(epoch: GroupEpoch, address: &str) -> Result<Self, FfiError> {
        Ok(Self { epoch, store: TcpStore::host(address, 0, STORE_TIMEOUT)? })
    }

    pub(super) fn port(&self) -> u16 {
        self.store.port()
    }
}

/// Why a rank cannot join an epoch.
#[derive(Debug, thiserror::Error)]
pub(super) enum EpochError {
    /// The process group.
    #[error(transparent)]
    Group(#[from] FfiError),
    /// The optimizer's state.
    #[error(transparent)]
    Update(#[from] UpdateError),
    /// The ranks of an earlier epoch held parts that nobody else has.
    #[error(
        "with optimizer.shard the optimizer state of a lost rank is gone; go on from the last checkpoint with --resume"
    )]
    ShardLost,
}

/// What a rendezvous gives: the store, and the group once all ranks have come.
type Met = Result<(TcpStore, Arc<ProcessGroup>), FfiError>;

/// Where the engine leaves what it waits for with other ranks, for whoever must interrupt it.
#[derive(Debug, Default)]
pub struct Interrupt {
    state: Mutex<Interruptible>,
}

#[derive(Debug, Default)]
struct Interruptible {
    group: Option<Arc<ProcessGroup>>,
    /// The thread that aborts a group before.
    aborting: Option<JoinHandle<()>>,
    /// Where the engine waits for the other ranks to come: `None` ends the wait.
    rendezvous: Option<Sender<Option<Met>>>,
    /// Interruptions whose commands the engine has not come to. Until it has, what it begins with other ranks is
    /// of an epoch that is over.
    ahead: u32,
}

fn interrupted() -> FfiError {
    let message = "the coordinator ended the epoch".to_owned();
    FfiError::Aborted { operation: "rendezvous", message }
}

impl Interrupt {
    fn state(&self) -> MutexGuard<'_, Interruptible> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what the engine waits for with other ranks, and lets it begin nothing of the kind before it has come to
    /// the command because of which this is called. A group is then of no more use.
    pub fn raise(&self) {
        let mut state = self.state();
        state.ahead += 1;
        if let Some(waiting) = state.rendezvous.take() {
            // Nobody waits any more if the ranks came in this moment.
            let _ = waiting.send(None);
        }
        if let Some(group) = state.group.take() {
            // Not on a thread that others wait for: a backend may take its time.
            state.aborting = Some(std::thread::spawn(move || abort(&group)));
        }
    }

    /// The engine has come to the command of an interruption.
    pub(super) fn handled(&self) {
        let mut state = self.state();
        state.ahead = state.ahead.saturating_sub(1);
    }

    /// Runs `form` on a thread of its own and waits for it, but no longer than until it is interrupted: libtorch
    /// waits for ranks that may never come. A thread that is left alone ends with its own deadlines.
    fn rendezvous(&self, limit: Duration, form: impl FnOnce() -> Met + Send + 'static) -> Met {
        let (done, met) = channel();
        {
            let mut state = self.state();
            if state.ahead > 0 {
                return Err(interrupted());
            }
            state.rendezvous = Some(done.clone());
        }
        std::thread::spawn(move || {
            // Nobody listens after an interruption: a group that came late ends here.
            let _ = done.send(Some(form()));
        });
        let met = pulse::piece(Work::Rendezvous, || met.recv_timeout(limit));
        let mut state = self.state();
        state.rendezvous = None;
        match met {
            Ok(Some(Ok((store, group)))) if state.ahead == 0 => {
                state.group = Some(group.clone());
                Ok((store, group))
            }
            Ok(Some(Err(error))) => Err(error),
            Ok(_) => Err(interrupted()),
            Err(RecvTimeoutError::Timeout) => {
                let message = format!("the ranks did not come within {limit:?}");
                Err(FfiError::Timeout { operation: "rendezvous", message })
            }
            Err(RecvTimeoutError::Disconnected) => {
                let message = "the thread that waited for the ranks ended".to_owned();
                Err(FfiError::Failed { operation: "rendezvous", message })
            }
        }
    }

    /// Returns when no group before writes into this rank's tensors any more.
    pub(super) fn settle(&self) {
        let (group, aborting) = {
            let mut state = self.state();
            (state.group.take(), state.aborting.take())
        };
        pulse::piece(Work::Abort, || {
            if let Some(group) = group {
                abort(&group);
            }
            if let Some(thread) = aborting {
                // It has no way to panic but one that was logged.
                let _ = thread.join();
            }
        });
    }
}

fn abort(group: &ProcessGroup) {
    if let Err(error) = group.abort() {
        tracing::warn!(%error, "the collectives could not be aborted");
    }
}

/// A standing epoch.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) plan: EpochPlan,
    group: Option<Arc<ProcessGroup>>,
    /// Outlives the group, whose peers may still ask it.
    _store: Option<TcpStore>,
}

impl Epoch {
    /// Joins the process group that `plan` describes: NCCL between GPUs, Gloo between CPUs. One rank
    /// alone needs none. An interruption ends the wait for the others at once.
    pub(super) fn form(
        plan: &EpochPlan,
        hosted: Option<HostedStore>,
        address: &str,
        device: Device,
        interrupt: &Interrupt,
    ) -> Result<Self, FfiError> {
        if plan.world_size == 1 {
            return Ok(Self { plan: plan.clone(), group: None, _store: hosted.map(|h| h.store) });
        }
        let collective_timeout = Duration::from_millis(plan.collective_timeout_ms);
        let options = ProcessGroupOptions {
            prefix: format!("epoch-{}", plan.epoch),
            rank: plan.rank.0,
            world_size: plan.world_size,
            timeout: collective_timeout,
            bind_host: address.to_owned(),
        };
        let backend = if device == Device::Cpu { Backend::Gloo } else { Backend::Nccl };
        let (store_address, store_port) = (plan.store_address.clone(), plan.store_port);
        let hosted = hosted.filter(|h| h.epoch == plan.epoch);
        let meet = move || {
            let store = match hosted {
                Some(hosted) => hosted.store,
                None => TcpStore::connect(&store_address, store_port, STORE_TIMEOUT)?,
            };
            let group = Arc::new(ProcessGroup::new(backend, &store, &options)?);
            Ok((store, group))
        };
        let limit = STORE_TIMEOUT + collective_timeout + RENDEZVOUS_SLACK;
        let (store, group) = interrupt.rendezvous(limit, meet)?;
        Ok(Self { plan: plan.clone(), group: Some(group), _store: Some(store) })
    }

    /// The process group; `None` for one rank alone.
    pub(super) fn group(&self) -> Option<&ProcessGroup> {
        self.group.as_deref()
    }

    /// Broadcasts weights, optimizer moments, step count and policy version from the source rank, if not all
    /// ranks hold the same. With `optimizer.shard` every rank has read the same files instead, and keeps its part
    /// of the state.
    pub(super) fn share_policy(&self, policy: &mut Policy) -> Result<(), EpochError> {
        failpoint::reach("join");
        if policy.config.optimizer.shard {
            return self.divide(policy);
        }
        let Some(group) = self.group.as_ref().filter(|_| self.plan.share_policy) else { return Ok(()) };
        let _guard = tch::no_grad_guard();
        let source = self.plan.source_rank.0;
        let device = policy.model.weights().device();
        let counts =
            Tensor::from_slice(&[policy.updater.optimizer().steps() as i64, policy.version.0 as i64])
                .to_device(device);
        broadcast(group, &counts, source, device)?;
        let [exp_avg, exp_avg_sq] = policy.updater.optimizer().state();
        for tensor in [policy.model.weights().master(), exp_avg, exp_avg_sq] {
            broadcast(group, tensor, source, device)?;
        }
        let counts = counts.to_device(Device::Cpu).to_kind(Kind::Int64);
        policy.updater.optimizer_mut().set_steps(counts.int64_value(&[0]) as u64);
        policy.version = PolicyVersion(counts.int64_value(&[1]) as u64);
        policy.model.weights_mut().refresh_compute();
        Ok(())
    }

    fn divide(&self, policy: &mut Policy) -> Result<(), EpochError> {
        if policy.divided {
            return Err(EpochError::ShardLost);
        }
        let weights = policy.model.weights_mut();
        let shard = Shard::new(weights.layout(), self.plan.rank.0, self.plan.world_size);
        let file = policy.model_dir.join(OPTIMIZER_FILE);
        let steps = policy.version.0;
        let checkpoint = (steps > 0).then_some((file.as_path(), steps));
        policy.updater.divide(weights, shard, checkpoint)?;
        policy.divided = true;
        Ok(())
    }
}

/// Broadcasts a flat tensor; one in host memory passes through the device in chunks.
fn broadcast(group: &ProcessGroup, flat: &Tensor, source: u32, device: Device) -> Result<(), FfiError> {
    let share =
        |tensor: &Tensor| pulse::piece(Work::Broadcast, || group.broadcast(tensor, source)?.wait(None));
    if flat.device() == device {
        return share(flat);
    }
    let whole = Piece { flat: 0, own: 0, length: flat.numel() as i64 };
    for piece in chunks(whole, CHUNK) {
        let mut host = flat.narrow(0, piece.flat, piece.length);
        let chunk = host.to_device(device);
        share(&chunk)?;
        host.copy_(&chunk);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A wait for ranks that do not come, as long as `_until` lives.
    fn forever() -> (Sender<()>, impl FnOnce() -> Met + Send) {
        let (until, wait) = channel::<()>();
        (until, move || {
            let _ = wait.recv();
            Err(FfiError::Failed { operation: "test", message: "over".to_owned() })
        })
    }

    #[test]
    fn an_interruption_ends_the_wait_for_ranks_that_do_not_come() {
        let interrupt = Arc::new(Interrupt::default());
        let (until, form) = forever();
        let other = interrupt.clone();
        let raises = std::thread::spawn(move || {
            while other.state().rendezvous.is_none() {
                std::thread::yield_now();
            }
            other.raise();
        });
        let started = Instant::now();
        let error = interrupt.rendezvous(LONG, form).unwrap_err();
        assert!(matches!(&error, FfiError::Aborted { .. }), "{error}");
        assert!(started.elapsed() < LONG / 2);
        raises.join().unwrap();
        drop(until);
    }

    /// The command for the next epoch is already in the queue behind the one for this.
    #[test]
    fn nothing_begins_before_the_engine_has_come_to_the_interruption() {
        let interrupt = Interrupt::default();
        interrupt.raise();
        interrupt.raise();
        for _ in 0..2 {
            let error = interrupt.rendezvous(LONG, || panic!("it must not begin")).unwrap_err();
            assert!(matches!(error, FfiError::Aborted { .. }));
            interrupt.settle();
            interrupt.handled();
        }
        let over = || Err(FfiError::Failed { operation: "test", message: "begun".to_owned() });
        assert!(interrupt.rendezvous(LONG, over).unwrap_err().to_string().contains("begun"));
    }

    #[test]
    fn a_rendezvous_has_a_deadline() {
        let (until, form) = forever();
        let error = Interrupt::default().rendezvous(Duration::from_millis(20), form).unwrap_err();
        assert!(matches!(error, FfiError::Timeout { .. }), "{error}");
        drop(until);
    }
}
