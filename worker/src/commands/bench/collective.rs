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
    let store = TcpStore::host(HOST, 0, TIMEOUT)?;
    let port = store.port();
    // Warm-up and repetitions, in step with the other rank.
    let rounds = sizes.repetitions + 1;
    let peer = std::thread::spawn(move || -> anyhow::Result<()> {
        let store = TcpStore::connect(HOST, port, TIMEOUT)?;
        let group = join(&store, 1)?;
        let gradient = gradient(numel);
        (0..rounds).try_for_each(|_| reduce(&group, &gradient))
    });
    let group = join(&store, 0)?;
    let gradient = gradient(numel);
    report.repeat(sizes.repetitions, || reduce(&group, &gradient))?;
    peer.join().map_err(|_| anyhow!("the second rank panicked"))??;
    report.set("bytes", (numel * 4).into());
    Ok(())
}

fn gradient(numel: i64) -> Tensor {
    Tensor::zeros([numel], (Kind::Float, Device::Cpu))
}

fn join(store: &TcpStore, rank: u32) -> anyhow::Result<ProcessGroup> {
    let options = ProcessGroupOptions {
        prefix: "bench".into(),
        rank,
        world_size: 2,
        timeout: TIMEOUT,
        bind_host: HOST.into(),
    };
    Ok(ProcessGroup::new(Backend::Gloo, store, &options)?)
}

fn reduce(group: &ProcessGroup, gradient: &Tensor) -> anyhow::Result<()> {
    Ok(group.all_reduce(gradient, ReduceOp::Sum)?.wait(None)?)
}
