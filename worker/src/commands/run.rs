//! `g2rl-worker run`: join a run as one rank, or as one rank for each device.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use g2rl_common::ids::WorkerId;
use g2rl_common::secret::{Secret, readable_by_others};
use tch::Device;

use crate::access::Access;
use crate::address;
use crate::devices;
use crate::engine::SharedStatus;
use crate::session::{self, SessionError, SessionOptions, device_name};
use crate::supervisor::{self, Board, EXIT_REFUSED, RankCommand, RestartPolicy, SupervisorError};
use crate::telemetry;
use crate::watchdog;

/// Pauses before a rank is started again; see [`RestartPolicy`].
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A rank has settled if it has lived so much longer than it may look for the coordinator.
const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// Join a run and generate rollouts and update the policy until it is over.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-worker run --coordinator https://train.example:7700 --ca ca.pem --token-file token --interface ib0
  g2rl-worker run --coordinator http://127.0.0.1:7700 --devices cuda:0,cuda:1 --max-restarts 10
  g2rl-worker run --coordinator http://127.0.0.1:7700 --devices cpu --http 127.0.0.1:9100")]
pub struct RunArgs {
    /// Address of the coordinator.
    #[arg(long, value_name = "URL")]
    coordinator: String,
    /// Devices of this machine, one rank each: `all` (every GPU, or the CPU without one), or a list such as
    /// cuda:0,cuda:1 or cpu,cpu. Each rank is a process of its own that is started again if it crashes. One
    /// device named alone, such as cpu, is this process itself.
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
    /// Restarts in a row of a crashed rank, one to 60 seconds apart, after which it is given up and the
    /// others go on without it.
    #[arg(long, value_name = "N", default_value_t = 5)]
    max_restarts: u32,
    /// Serve /metrics, /healthz and /readyz here; off by default. With several ranks here for all of them, and for
    /// each on the ports that follow.
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<SocketAddr>,
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
    let devices = devices::parse(&args.devices)?;
    match devices.ranks[..] {
        [device] if devices.alone => run_rank(args, device),
        _ => run_ranks(args, &devices.ranks),
    }
}

fn run_rank(args: &RunArgs, device: Device) -> anyhow::Result<ExitCode> {
    supervisor::bind_to_supervisor()?;
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
    // An engine deep inside libtorch cannot be waited for, not even by exit handlers: the process ends without it.
    match exit_code(result) {
        0 => Ok(ExitCode::SUCCESS),
        code => g2rl_ffi::process::exit_now(code.into()),
    }
}

/// What a supervisor is told; it also knows that the same command would end the same way again.
fn exit_code(result: anyhow::Result<()>) -> u8 {
    let Err(error) = result else { return 0 };
    tracing::error!("{error:#}");
    if is_refusal(&error) { EXIT_REFUSED } else { 1 }
}

/// Whether the same command would end the same way again.
fn is_refusal(error: &anyhow::Error) -> bool {
    use SessionError::{Access, Trust, Version};
    match error.downcast_ref::<SessionError>() {
        Some(error) => matches!(error, Access(_) | Trust(_) | Version { .. }),
        None => error.downcast_ref().is_some_and(SupervisorError::is_refusal),
    }
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

/// One process for each device.
fn run_ranks(args: &RunArgs, devices: &[Device]) -> anyhow::Result<ExitCode> {
    // Ranks end with the thread that started them: they are started by this one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let ranks = rank_commands(args, devices)?;
    let policy = RestartPolicy {
        max_restarts: args.max_restarts,
        first_pause: PAUSES.0,
        longest_pause: PAUSES.1,
        settled_after: Duration::from_secs(args.connect_timeout) + SETTLED_AFTER,
    };
    let board = Arc::new(Board::new(ranks.iter().map(|rank| rank.label.clone())));
    let result = runtime.block_on(async {
        if let Some(address) = args.http {
            supervisor::serve(address, board.clone()).await.context("cannot serve metrics")?;
        }
        supervisor::run(&ranks, policy, &board).await.map_err(anyhow::Error::from)
    });
    Ok(ExitCode::from(exit_code(result)))
}

/// This process's own command line, for each device.
fn rank_commands(args: &RunArgs, devices: &[Device]) -> anyhow::Result<Vec<RankCommand>> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let shared: Vec<String> = std::env::args().skip(1).collect();
    let cpus = devices.iter().filter(|device| **device == Device::Cpu).count();
    let mut ranks = Vec::new();
    for (index, &device) in devices.iter().enumerate() {
        let name = device_name(device);
        let unique = device != Device::Cpu || cpus == 1;
        let mut arguments = shared.clone();
        set_option(&mut arguments, "--devices", &name);
        if let Some(given) = args.name.as_ref().filter(|_| !unique) {
            set_option(&mut arguments, "--name", &format!("{given}-{index}"));
        }
        if let Some(address) = args.http {
            let port = address.port().checked_add(1 + index as u16).context("--http: the ports after it")?;
            set_option(&mut arguments, "--http", &SocketAddr::new(address.ip(), port).to_string());
        }
        let mut variables = Vec::new();
        if device == Device::Cpu {
            if args.threads.is_none() {
                let threads = (std::thread::available_parallelism()?.get() / cpus).max(1);
                variables.push(("G2RL_THREADS", threads.to_string()));
            }
            // Spinning threads of two ranks on the same cores slow both down several times.
            variables.push(("OMP_WAIT_POLICY", "passive".to_owned()));
            variables.push(("GOMP_SPINCOUNT", "0".to_owned()));
        }
        let label = if unique { name } else { format!("{name}-{index}") };
        ranks.push(RankCommand { label, program: program.clone(), arguments, variables });
    }
    Ok(ranks)
}

/// Sets an option in a command line, whether it is there or not.
fn set_option(arguments: &mut Vec<String>, name: &str, value: &str) {
    let joined = format!("{name}=");
    if let Some(at) = arguments.iter().position(|argument| argument == name) {
        arguments[at + 1] = value.to_owned();
    } else if let Some(argument) = arguments.iter_mut().find(|argument| argument.starts_with(&joined)) {
        *argument = joined + value;
    } else {
        arguments.extend([name.to_owned(), value.to_owned()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_in_any_form() {
        for (given, expected) in [
            (&["run", "--devices", "all"][..], &["run", "--devices", "cuda:1"][..]),
            (&["run", "--devices=all", "-v"][..], &["run", "--devices=cuda:1", "-v"][..]),
            (&["run"][..], &["run", "--devices", "cuda:1"][..]),
        ] {
            let mut arguments: Vec<String> = given.iter().map(|&argument| argument.to_owned()).collect();
            set_option(&mut arguments, "--devices", "cuda:1");
            assert_eq!(arguments, expected);
        }
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn commands(options: &[&str], devices: &[Device]) -> Vec<RankCommand> {
        use clap::Parser;
        let line = [&["run", "--coordinator", "http://there:1"][..], options].concat();
        rank_commands(&Line::parse_from(line).run, devices).unwrap()
    }

    #[test]
    fn each_rank_has_its_own_device_name_and_port() {
        let options = ["--name", "host", "--http", "127.0.0.1:9100"];
        let ranks = commands(&options, &[Device::Cuda(0), Device::Cuda(1)]);
        let labels: Vec<&str> = ranks.iter().map(|rank| rank.label.as_str()).collect();
        assert_eq!(labels, ["cuda:0", "cuda:1"]);
        let pairs = |rank: &RankCommand| rank.arguments.join(" ");
        assert!(pairs(&ranks[1]).contains("--devices cuda:1"), "{ranks:?}");
        assert!(pairs(&ranks[1]).contains("--http 127.0.0.1:9102"), "{ranks:?}");
        assert!(ranks.iter().all(|rank| rank.variables.is_empty()), "{ranks:?}");

        let ranks = commands(&options, &[Device::Cpu, Device::Cpu]);
        assert_eq!((ranks[0].label.as_str(), ranks[1].label.as_str()), ("cpu-0", "cpu-1"));
        assert!(pairs(&ranks[0]).contains("--name host-0"), "{ranks:?}");
        assert!(ranks[0].variables.iter().any(|(name, _)| *name == "G2RL_THREADS"), "{ranks:?}");
        assert!(commands(&["--threads", "3"], &[Device::Cpu])[0].variables.len() == 2);
    }
}
