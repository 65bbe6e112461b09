//! One epoch's process group, and how a policy gets to every rank of it.

use std::sync::{Arc, Mutex, PoisonError};
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
use crate::update::UpdateError;
use crate::update::offload::{CHUNK, chunks};

/// Time rank 0 waits for a store operation, and the others for the store to appear.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

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

/// Where the engine leaves its process group for whoever must interrupt it.
#[derive(Debug, Default)]
pub struct Interrupt {
    state: Mutex<Interruptible>,
}

#[derive(Debug, Default)]
struct Interruptible {
    group: Option<Arc<ProcessGroup>>,
    /// The thread that aborts a group before.
    aborting: Option<JoinHandle<()>>,
}

impl Interrupt {
    /// Ends the collectives that the engine waits for, if there are any. The group is of no more use.
    pub fn raise(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = state.group.take() {
            // Not on a thread that others wait for: a backend may take its time.
            state.aborting = Some(std::thread::spawn(move || abort(&group)));
        }
    }

    fn set(&self, group: Arc<ProcessGroup>) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).group = Some(group);
    }

    /// Returns when no group before writes into this rank's tensors any more.
    pub(super) fn settle(&self) {
        let Interruptible { group, aborting } =
            std::mem::take(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(group) = group {
            abort(&group);
        }
        if let Some(thread) = aborting {
            // It has no way to panic but one that was logged.
            let _ = thread.join();
        }
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
    /// alone needs none.
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
        let store = match hosted.filter(|h| h.epoch == plan.epoch) {
            Some(hosted) => hosted.store,
            None => TcpStore::connect(&plan.store_address, plan.store_port, STORE_TIMEOUT)?,
        };
        let options = ProcessGroupOptions {
            prefix: format!("epoch-{}", plan.epoch),
            rank: plan.rank.0,
            world_size: plan.world_size,
            timeout: Duration::from_millis(plan.collective_timeout_ms),
            bind_host: address.to_owned(),
        };
        let backend = if device == Device::Cpu { Backend::Gloo } else { Backend::Nccl };
        let group = Arc::new(ProcessGroup::new(backend, &store, &options)?);
        interrupt.set(group.clone());
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
        group.broadcast(&counts, source)?.wait(None)?;
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
    if flat.device() == device {
        return group.broadcast(flat, source)?.wait(None);
    }
    let whole = Piece { flat: 0, own: 0, length: flat.numel() as i64 };
    for piece in chunks(whole, CHUNK) {
        let mut host = flat.narrow(0, piece.flat, piece.length);
        let chunk = host.to_device(device);
        group.broadcast(&chunk, source)?.wait(None)?;
        host.copy_(&chunk);
    }
    Ok(())
}
