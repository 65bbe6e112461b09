//! `g2rl-worker run`: join a run as one rank, or as one rank for each device.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use g2rl_common::ids::WorkerId;
use g2rl_common::secret::{Secret, readable_by_others};
use tch::Device;

use crate::access::Access;
use crate::address;
use crate::engine::SharedStatus;
use crate::session::{self, SessionOptions, device_name};
use crate::telemetry;
use crate::watchdog;

/// Time given to the other ranks of this machine to end by themselves after one failed.
const SIBLING_TIMEOUT: Duration = Duration::from_secs(60);

/// Join a run and generate rollouts and update the policy until it is over.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-worker run --coordinator https://train.example:7700 --ca ca.pem --token-file token --interface ib0
  g2rl-worker run --coordinator http://127.0.0.1:7700 --devices cuda:0,cuda:1
  g2rl-worker run --coordinator http://127.0.0.1:7700 --devices cpu --http 127.0.0.1:9100")]
pub struct RunArgs {
    /// Address of the coordinator.
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// Devices of this machine, one rank each: `all` (every GPU, or the CPU without one), `cpu`, or
    /// a list such as cuda:0,cuda:1.
    #[arg(long, default_value = "all")]
    devices: String,
    /// Address under which other ranks reach this machine: gradients go over it. By default the one that this
    /// machine uses towards the coordinator.
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// Network interface whose IPv4 address it is. Between GPUs, NCCL_SOCKET_IFNAME and NCCL_IB_HCA choose what
    /// gradients go over.
    #[arg(long, value_name = "NAME", conflicts_with = "address")]
    interface: Option<String>,
    /// Name of this worker in logs, followed by the device; by default the device and a random number.
    /// No two workers of a run may share one.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Serve /metrics, /healthz and /readyz here; off by default.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<std::net::SocketAddr>,
    /// How long to look for the coordinator, at the start and whenever its stream breaks, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    connect_timeout: u64,
    #[command(flatten)]
    access: AccessArgs,
    /// CPU threads for libtorch; by default libtorch decides.
    #[arg(long, env = "G2RL_THREADS")]
    threads: Option<i32>,
}

/// Certificates and token.
#[derive(Debug, Args)]
struct AccessArgs {
    /// File with the token that the coordinator asks for; the variable G2RL_TOKEN by default.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authority that signed the coordinator's certificate, PEM; the system's by default. Turns TLS on.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Certificate of this worker, PEM, for coordinators that ask for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its private key, PEM.
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Name in the coordinator's certificate, if it is not that of its address.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
}

impl AccessArgs {
    fn read(&self) -> anyhow::Result<Access> {
        for path in [&self.token_file, &self.key].into_iter().flatten() {
            if readable_by_others(path) {
                tracing::warn!(path = %path.display(), "other users of this machine can read this file: chmod 600");
            }
        }
        Ok(Access {
            token: Secret::find(self.token_file.as_deref())?,
            ca: self.ca.clone(),
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            server_name: self.server_name.clone(),
        })
    }
}

/// Runs the command.
///
/// # Errors
/// Whatever ended the session; the text names what was waited for.
pub fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let devices = parse_devices(&args.devices)?;
    match devices[..] {
        [device] => run_rank(args, device),
        _ => run_ranks(&devices),
    }
}

fn run_rank(args: &RunArgs, device: Device) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let address = match &args.interface {
        Some(name) => {
            let found = address::of_interface(name);
            Some(found.with_context(|| format!("--interface {name}: no address found"))?)
        }
        None => args.address.clone(),
    };
    let options = SessionOptions {
        coordinator: args.coordinator.clone(),
        access: args.access.read()?,
        worker: worker_id(args.name.as_deref(), device),
        device,
        address,
        connect_timeout: Duration::from_secs(args.connect_timeout),
        threads: args.threads,
    };
    let status = Arc::new(SharedStatus::default());
    watchdog::start(&status).context("cannot start the watchdog")?;
    let result = runtime.block_on(async {
        if let Some(address) = args.http {
            telemetry::serve(address, device, status.clone()).await.context("cannot serve metrics")?;
        }
        tokio::select! {
            result = session::run(options, status.clone()) => result.map_err(anyhow::Error::from),
            signal = stop_signal() => Err(anyhow::anyhow!("stopped by {signal}")),
        }
    });
    // An engine deep inside libtorch cannot be waited for, not even by exit handlers: the process ends without it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Err(error) = result {
        tracing::error!("{error:#}");
        g2rl_ffi::process::exit_now(1);
    }
    Ok(ExitCode::SUCCESS)
}

fn worker_id(name: Option<&str>, device: Device) -> WorkerId {
    let device = device_name(device).replace(':', "");
    WorkerId(match name {
        Some(name) => format!("{name}-{device}"),
        None => format!("{device}-{}", uuid::Uuid::new_v4().simple()),
    })
}

async fn stop_signal() -> &'static str {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals' default action ends the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// One process for each device: a CUDA error or a kill then takes one rank, not all.
fn run_ranks(devices: &[Device]) -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut children = Vec::new();
    for device in devices {
        let mut arguments: Vec<String> = std::env::args().skip(1).collect();
        replace_devices(&mut arguments, &device_name(*device));
        let child = std::process::Command::new(&program).args(arguments).spawn();
        children.push((*device, child.with_context(|| format!("cannot start a rank on {device:?}"))?));
    }
    let mut failed = Vec::new();
    let mut deadline = None;
    while !children.is_empty() {
        let mut running = Vec::new();
        for (device, mut child) in children {
            match child.try_wait().context("cannot wait for a rank")? {
                Some(status) if status.success() => {}
                Some(status) => failed.push(format!("{}: {status}", device_name(device))),
                None => running.push((device, child)),
            }
        }
        if !failed.is_empty() {
            let deadline = *deadline.get_or_insert_with(|| std::time::Instant::now() + SIBLING_TIMEOUT);
            if std::time::Instant::now() > deadline {
                for (_, child) in &mut running {
                    child.kill().context("cannot stop a rank")?;
                }
            }
        }
        children = running;
        std::thread::park_timeout(Duration::from_millis(100));
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("ranks failed: {}", failed.join(", "))
}

fn replace_devices(arguments: &mut Vec<String>, device: &str) {
    if let Some(at) = arguments.iter().position(|a| a == "--devices") {
        arguments[at + 1] = device.to_owned();
    } else if let Some(argument) = arguments.iter_mut().find(|a| a.starts_with("--devices=")) {
        *argument = format!("--devices={device}");
    } else {
        arguments.extend(["--devices".to_owned(), device.to_owned()]);
    }
}

/// Parses `all`, `cpu` or a list of devices.
///
/// # Errors
/// If a name is unknown, a GPU is not there, or a device is named twice.
pub fn parse_devices(text: &str) -> anyhow::Result<Vec<Device>> {
    let gpus = g2rl_ffi::cuda::device_count();
    if text == "all" {
        return Ok(if gpus == 0 { vec![Device::Cpu] } else { (0..gpus).map(Device::Cuda).collect() });
    }
    let mut devices = Vec::new();
    for name in text.split(',').map(str::trim) {
        let device = match name.strip_prefix("cuda:").map(str::parse::<usize>) {
            _ if name == "cpu" => Device::Cpu,
            Some(Ok(index)) if index < gpus => Device::Cuda(index),
            Some(Ok(index)) => bail!("device cuda:{index} is not there: {gpus} GPUs found"),
            _ => bail!("device {name} is unknown; use all, cpu or a list such as cuda:0,cuda:1"),
        };
        if devices.contains(&device) {
            bail!("device {name} is named twice");
        }
        devices.push(device);
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_lists() {
        assert_eq!(parse_devices("cpu").unwrap(), [Device::Cpu]);
        assert!(parse_devices("cpu,cpu").unwrap_err().to_string().contains("twice"));
        assert!(parse_devices("gpu").unwrap_err().to_string().contains("gpu"));
        assert!(parse_devices("cuda:99").unwrap_err().to_string().contains("cuda:99"));
    }

    #[test]
    fn each_rank_gets_its_own_device() {
        let mut arguments = vec!["run".to_owned(), "--devices".to_owned(), "all".to_owned()];
        replace_devices(&mut arguments, "cuda:1");
        assert_eq!(arguments, ["run", "--devices", "cuda:1"]);
        let mut arguments = vec!["run".to_owned()];
        replace_devices(&mut arguments, "cpu");
        assert_eq!(arguments, ["run", "--devices", "cpu"]);
    }
}
