//! The sum of a model's gradients over two ranks on this machine: two groups in one process, each
//! with its own thread, over the loopback interface.

use std::time::Duration;

use anyhow::anyhow;
use g2rl_ffi::process_group::{Backend, ProcessGroup, ProcessGroupOptions, ReduceOp, TcpStore};
use tch::{Device, Kind, Tensor};

use super::SizeArgs;
use super::report::Report;

const TIMEOUT: Duration = Duration::from_secs(120);
const HOST: &str = "127.0.0.1";

pub(super) fn measure(sizes: &SizeArgs, report: &mut Report) -> anyhow::Result<()> {
    let numel = sizes.load()?.weights().layout().numel();
    let store = Rendezvous::open(2)?;
    // Warm-up and repetitions, in step with the other rank.
    let rounds = sizes.repetitions + 1;
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let peer = scope.spawn(|| -> anyhow::Result<()> {
            let group = store.join(1)?;
            let gradient = gradient(numel);
            (0..rounds).try_for_each(|_| reduce(&group, &gradient))
        });
        let group = store.join(0)?;
        let gradient = gradient(numel);
        report.repeat(sizes.repetitions, || reduce(&group, &gradient))?;
        peer.join().map_err(|_| anyhow!("the second rank panicked"))?
    })?;
    report.set("bytes", (numel * 4).into());
    Ok(())
}

/// Where the ranks of this process find each other.
pub(super) struct Rendezvous {
    store: TcpStore,
    world_size: u32,
}

impl Rendezvous {
    pub(super) fn open(world_size: u32) -> anyhow::Result<Self> {
        Ok(Self { store: TcpStore::host(HOST, 0, TIMEOUT)?, world_size })
    }

    /// Joins as a rank; returns when all have.
    pub(super) fn join(&self, rank: u32) -> anyhow::Result<ProcessGroup> {
        let store = TcpStore::connect(HOST, self.store.port(), TIMEOUT)?;
        let options = ProcessGroupOptions {
            prefix: "bench".into(),
            rank,
            world_size: self.world_size,
            timeout: TIMEOUT,
            bind_host: HOST.into(),
        };
        Ok(ProcessGroup::new(Backend::Gloo, &store, &options)?)
    }
}

fn gradient(numel: i64) -> Tensor {
    Tensor::zeros([numel], (Kind::Float, Device::Cpu))
}

fn reduce(group: &ProcessGroup, gradient: &Tensor) -> anyhow::Result<()> {
    Ok(group.all_reduce(gradient, ReduceOp::Sum)?.wait(None)?)
}
