//! The rendered Jobs as local processes: each pod on a host of its own, with the rendered command, environment and
//! mounts, killed and replaced as kubelet and Job controller do. The run finishes as if nothing had happened.
//!
//! What is not as on a cluster: programs come from the build, not from an image, and run as the test's user; pauses
//! before a replacement are left out.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use g2rl_tests::hosts::{Host, Hosts};
use g2rl_tests::process::Process;
use g2rl_tests::{program, root, until};
use k8s_openapi::ByteString;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, HTTPGetAction, PodSpec, Secret, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

use super::schema::typed;
use super::{DEADLINE, overlay, read, render, secrets};

/// How often pods are looked at.
const PERIOD: Duration = Duration::from_millis(200);

/// Longest run.
const WHOLE: Duration = Duration::from_secs(300);

/// Addresses for all pods that are started, each used once: a new pod has a new one.
const HOSTS: [&str; 9] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7", "p8"];

/// One pod.
struct Pod {
    name: String,
    host: Host,
    process: Process,
    /// The node was drained or lost: the failure is not the pod's.
    disrupted: bool,
    healthy: bool,
    failed_probes: i32,
}

/// A Job, or one index of it.
struct Slot {
    job: String,
    index: i32,
    spec: JobSpec,
    pod: Option<Pod>,
    failures: i32,
}

/// What a Job does about a pod that has ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Complete,
    Replace { counts: bool },
    GiveUp,
}

impl Slot {
    fn pod_spec(&self) -> &PodSpec {
        self.spec.template.spec.as_ref().expect("a Job has a template")
    }

    /// See `podFailurePolicy`: the first rule that applies decides.
    fn verdict(&self, code: Option<i32>, disrupted: bool) -> Verdict {
        if code == Some(0) {
            return Verdict::Complete;
        }
        // What the kernel killed ends with 128 and the signal.
        let code = code.unwrap_or(137);
        let rules = self.spec.pod_failure_policy.iter().flat_map(|policy| &policy.rules);
        for rule in rules {
            let conditions = rule.on_pod_conditions.iter().flatten();
            let applies =
                conditions.clone().any(|condition| disrupted && condition.type_ == "DisruptionTarget")
                    || rule.on_exit_codes.as_ref().is_some_and(|codes| {
                        assert_eq!(codes.operator, "In");
                        codes.values.contains(&code)
                    });
            if applies {
                return match rule.action.as_str() {
                    "Ignore" => Verdict::Replace { counts: false },
                    _ => Verdict::GiveUp,
                };
            }
        }
        let most = self.spec.backoff_limit_per_index.or(self.spec.backoff_limit).unwrap_or(6);
        if self.failures < most { Verdict::Replace { counts: true } } else { Verdict::GiveUp }
    }
}

/// The nodes of a small cluster.
struct Nodes {
    dir: PathBuf,
    hosts: Hosts,
    used: Cell<usize>,
    config_maps: BTreeMap<String, ConfigMap>,
    secrets: BTreeMap<String, Secret>,
    slots: Vec<Slot>,
    events: Vec<String>,
    started: Instant,
}

impl Nodes {
    fn new(dir: &Path, hosts: Hosts, documents: &[Value], secrets: &[Value]) -> Self {
        let of_kind = |kind: &'static str| documents.iter().filter(move |document| document["kind"] == kind);
        let name = |name: &Option<String>| name.clone().expect("an object has a name");
        let mut slots = Vec::new();
        for job in of_kind("Job").map(typed::<Job>) {
            let spec = job.spec.expect("a Job has a specification");
            for index in 0..spec.completions.unwrap_or(1) {
                let job = name(&job.metadata.name);
                slots.push(Slot { job, index, spec: spec.clone(), pod: None, failures: 0 });
            }
        }
        let maps = of_kind("ConfigMap").map(typed::<ConfigMap>);
        let secrets = secrets.iter().map(typed::<Secret>);
        Self {
            dir: dir.to_owned(),
            hosts,
            used: Cell::new(0),
            config_maps: maps.map(|map| (name(&map.metadata.name), map)).collect(),
            secrets: secrets.map(|secret| (name(&secret.metadata.name), secret)).collect(),
            slots,
            events: Vec::new(),
            started: Instant::now(),
        }
    }

    fn say(&mut self, event: String) {
        self.events.push(format!("{:6.1} s  {event}", self.started.elapsed().as_secs_f64()));
    }

    fn slot(&self, job: &str, index: i32) -> usize {
        let found = self.slots.iter().position(|slot| slot.job == job && slot.index == index);
        found.expect("a Job of the overlay")
    }

    /// The directory that a volume is.
    fn volume(&self, pod: &str, volume: &Volume) -> anyhow::Result<PathBuf> {
        let own = self.dir.join("pods").join(pod).join(&volume.name);
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        if let Some(claim) = &volume.persistent_volume_claim {
            let shared = self.dir.join("volumes").join(&claim.claim_name);
            std::fs::create_dir_all(&shared)?;
            return Ok(shared);
        } else if let Some(map) = &volume.config_map {
            let data = self.config_maps.get(&map.name).context("the ConfigMap")?.data.as_ref();
            files.extend(data.into_iter().flatten().map(|(name, text)| (name.clone(), text.clone().into())));
        } else if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_ref().context("a Secret's name")?;
            let data = self.secrets.get(name).context("the Secret")?.data.as_ref();
            files.extend(
                data.into_iter().flatten().map(|(name, ByteString(text))| (name.clone(), text.clone())),
            );
        } else if volume.empty_dir.is_none() {
            bail!("no such volume here: {volume:?}");
        }
        std::fs::create_dir_all(&own)?;
        for (name, bytes) in files {
            std::fs::write(own.join(&name), bytes)?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o440);
            std::fs::set_permissions(own.join(name), mode)?;
        }
        Ok(own)
    }

    /// A container's process, with its mounts and nothing but its own environment.
    fn command(
        &self,
        pod: &str,
        host: &Host,
        spec: &PodSpec,
        container: &Container,
    ) -> anyhow::Result<Command> {
        let mut script = "set -e\nmount --make-rprivate /\nmount -t tmpfs tmpfs /srv\n".to_owned();
        let mut mount = |from: &Path, to: &str, read_only: bool| -> anyhow::Result<()> {
            let from = from.canonicalize()?;
            writeln!(script, "mkdir -p {to}\nmount --bind {} {to}", from.display())?;
            if read_only {
                writeln!(script, "mount -o remount,bind,ro {to}")?;
            }
            Ok(())
        };
        // What the image holds.
        let programs = program("g2rl-worker");
        mount(programs.parent().context("a folder")?, "/srv/bin", true)?;
        mount(&root().join("configs/demo"), "/srv/g2rl/demo", true)?;
        let mut mounts: Vec<_> = container.volume_mounts.iter().flatten().collect();
        // Sources may lie below /tmp.
        mounts.sort_by_key(|mount| mount.mount_path == "/tmp");
        for wanted in mounts {
            let mut volumes = spec.volumes.iter().flatten();
            let volume = volumes.find(|volume| volume.name == wanted.name).context("a mounted volume")?;
            mount(&self.volume(pod, volume)?, &wanted.mount_path, wanted.read_only == Some(true))?;
        }
        let names = self.dir.join("hosts").canonicalize()?;
        let names = format!("mount --bind {} /etc/hosts\n", names.display());
        script.insert_str(script.find("mkdir").context("a mount")?, &names);
        let mut variables = BTreeMap::from([
            ("PATH".to_owned(), "/srv/bin:/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), "/tmp".to_owned()),
            ("HOSTNAME".to_owned(), pod.to_owned()),
        ]);
        for variable in container.env.iter().flatten() {
            let field = variable.value_from.as_ref().and_then(|source| source.field_ref.as_ref());
            let value = match field.map(|field| field.field_path.as_str()) {
                None => variable.value.clone().unwrap_or_default(),
                Some("metadata.name") => pod.to_owned(),
                Some("status.podIP") => host.address.clone(),
                Some(other) => bail!("no field {other} here"),
            };
            variables.insert(variable.name.clone(), value);
        }
        let expand = |text: &String| {
            variables
                .iter()
                .fold(text.clone(), |text, (name, value)| text.replace(&format!("$({name})"), value))
        };
        let words: Vec<String> =
            container.command.iter().chain(&container.args).flatten().map(expand).collect();
        script.push_str("exec env -i \"$@\"\n");
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]);
        command.args(variables.iter().map(|(name, value)| format!("{name}={value}"))).args(words);
        let mut command = host.command(&command);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("{pod}.{}.log", container.name)))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    fn start(&mut self, at: usize) -> anyhow::Result<()> {
        let turn = self.used.replace(self.used.get() + 1);
        ensure!(turn < HOSTS.len(), "pods are replaced again and again:\n{}", self.events.join("\n"));
        let host = self.hosts.get(HOSTS[turn]);
        let slot = &self.slots[at];
        let (spec, name) = (slot.pod_spec().clone(), format!("{}-{}-{turn}", slot.job, slot.index));
        if slot.job == "g2rl-coordinator" {
            // What the Service's name means from now on.
            let names = format!("127.0.0.1 localhost\n{} g2rl-coordinator\n", host.address);
            std::fs::write(self.dir.join("hosts"), names)?;
        }
        for container in spec.init_containers.iter().flatten() {
            let mut process = Process::spawn(self.command(&name, &host, &spec, container)?)?;
            let ended =
                until(DEADLINE, || process.ended().transpose()).context("an init container's end")??;
            ensure!(ended.success(), "{}", self.log(&name, &container.name));
        }
        let [container] = &spec.containers[..] else { bail!("one container a pod") };
        let process = Process::spawn(self.command(&name, &host, &spec, container)?)?;
        self.say(format!("{name} started on {}", host.address));
        let pod = Pod { name, host, process, disrupted: false, healthy: false, failed_probes: 0 };
        self.slots[at].pod = Some(pod);
        Ok(())
    }

    fn log(&self, pod: &str, container: &str) -> String {
        std::fs::read_to_string(self.dir.join(format!("{pod}.{container}.log"))).unwrap_or_default()
    }

    /// Looks at all pods once. Returns whether all Jobs are complete.
    fn look(&mut self) -> anyhow::Result<bool> {
        for at in 0..self.slots.len() {
            let slot = &mut self.slots[at];
            let Some(pod) = &mut slot.pod else { continue };
            let Some(status) = pod.process.ended()? else {
                self.check_health(at)?;
                continue;
            };
            let (name, disrupted) = (pod.name.clone(), pod.disrupted);
            let verdict = slot.verdict(status.code(), disrupted);
            let code =
                status.code().map_or(format!("signal {:?}", status.signal()), |code| format!("code {code}"));
            self.say(format!("{name} ended with {code}: {verdict:?}"));
            match verdict {
                Verdict::Complete => self.slots[at].pod = None,
                Verdict::Replace { counts } => {
                    self.slots[at].failures += i32::from(counts);
                    self.start(at)?;
                }
                Verdict::GiveUp => {
                    let container = &self.slots[at].pod_spec().containers[0].name;
                    bail!("{name} ended with {code}:\n{}", self.log(&name, container))
                }
            }
        }
        Ok(self.slots.iter().all(|slot| slot.pod.is_none()))
    }

    /// Startup and liveness.
    fn check_health(&mut self, at: usize) -> anyhow::Result<()> {
        let container = self.slots[at].pod_spec().containers[0].clone();
        let probe = container.liveness_probe.as_ref().context("a liveness probe")?;
        let action = probe.http_get.as_ref().context("by HTTP")?;
        let pod = self.slots[at].pod.as_mut().context("a pod")?;
        let alive = answers(&pod.host, &container, action)?;
        pod.healthy |= alive;
        pod.failed_probes = if alive || !pod.healthy { 0 } else { pod.failed_probes + 1 };
        // A period of this test is shorter than a kubelet's, so a process may end between two failures.
        let most = probe.failure_threshold.unwrap_or(3) * probe.period_seconds.unwrap_or(10);
        ensure!(
            f64::from(pod.failed_probes) * PERIOD.as_secs_f64() < f64::from(most),
            "{} is not alive",
            pod.name
        );
        Ok(())
    }

    /// Whether all pods are ready.
    fn all_ready(&self) -> anyhow::Result<bool> {
        for slot in &self.slots {
            let container = &slot.pod_spec().containers[0];
            let action = container.readiness_probe.as_ref().and_then(|probe| probe.http_get.as_ref());
            let Some(pod) = &slot.pod else { return Ok(false) };
            if !answers(&pod.host, container, action.context("a readiness probe")?)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at all pods until something holds.
    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let since = Instant::now();
        while !holds(self)? {
            ensure!(!self.look()?, "all is over before {what}:\n{}", self.events.join("\n"));
            ensure!(since.elapsed() < DEADLINE, "not {what} in time:\n{}", self.events.join("\n"));
            std::thread::park_timeout(PERIOD);
        }
        self.say(what.to_owned());
        Ok(())
    }

    /// Signals a pod; by name, for the report.
    fn signal(&mut self, job: &str, index: i32, signal: &str, disrupted: bool) -> anyhow::Result<()> {
        let at = self.slot(job, index);
        let pod = self.slots[at].pod.as_mut().context("a pod to be signalled")?;
        pod.disrupted |= disrupted;
        pod.process.signal(signal)?;
        let event = format!("{} gets {signal}", pod.name);
        self.say(event);
        Ok(())
    }

    fn journal(&self) -> PathBuf {
        self.dir.join("volumes/g2rl-data/run/journal.sqlite")
    }

    fn steps(&self) -> i64 {
        let count = rusqlite::Connection::open(self.journal())
            .and_then(|journal| journal.query_row("SELECT count(*) FROM step", [], |row| row.get(0)));
        count.unwrap_or(0)
    }
}

/// Whether a probe succeeds, asked on the pod's own host.
fn answers(host: &Host, container: &Container, action: &HTTPGetAction) -> anyhow::Result<bool> {
    let IntOrString::String(name) = &action.port else { bail!("a probe's port has a name") };
    let mut ports = container.ports.iter().flatten();
    let port =
        ports.find(|port| port.name.as_ref() == Some(name)).context("the probe's port")?.container_port;
    let path = action.path.as_deref().unwrap_or("/");
    let script = format!(
        "exec 3<>/dev/tcp/{}/{port} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && head -c 12 <&3",
        host.address
    );
    let mut command = Command::new("timeout");
    command.args(["5", "bash", "-c", &script]);
    let output = host.command(&command).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).ends_with(" 200"))
}

/// A user's overlay over `cpu-demo` with a shorter run; beside the project's own runs, as paths in it are relative.
fn shorter() -> anyhow::Result<tempfile::TempDir> {
    let runs = root().join("runs");
    std::fs::create_dir_all(&runs)?;
    let directory = tempfile::tempdir_in(runs)?;
    let mut config = read(&overlay("cpu-demo").join("run.toml"));
    for (key, value) in [
        ("steps = 1000", "steps = 40"),
        ("prompts_per_step = 16", "prompts_per_step = 6"),
        ("group_size = 8", "group_size = 4"),
        ("k = [1, 8]", "k = [1]\nsamples = 1\nmax_problems = 4"),
        ("every = 100", "every = 8"),
        ("min_workers = 1", "min_workers = 2\nheartbeat_timeout_ms = 5000"),
    ] {
        ensure!(config.contains(key), "cpu-demo/run.toml has no line {key}");
        config = config.replace(key, value);
    }
    std::fs::write(directory.path().join("run.toml"), config)?;
    let text = "resources: [../../deploy/kubernetes/overlays/cpu-demo]\n\
                configMapGenerator: [{name: g2rl-config, behavior: replace, files: [run.toml]}]\n\
                generatorOptions: {disableNameSuffixHash: true}\n";
    std::fs::write(directory.path().join("kustomization.yaml"), text)?;
    Ok(directory)
}

#[test]
fn a_run_survives_what_a_cluster_does_to_its_pods() {
    let hosts = match Hosts::new(&HOSTS) {
        Ok(hosts) => hosts,
        Err(error) => return eprintln!("skipped: network namespaces are not permitted here: {error:#}"),
    };
    let directory = shorter().unwrap();
    let Some(documents) = render(directory.path()) else { return };
    let dir = tempfile::tempdir().unwrap();
    let secrets = secrets(&dir.path().join("secrets"));
    std::fs::write(dir.path().join("hosts"), "").unwrap();
    let mut nodes = Nodes::new(dir.path(), hosts, &documents, &secrets);
    (0..nodes.slots.len()).for_each(|slot| nodes.start(slot).unwrap());

    let after = |steps: i64| move |nodes: &Nodes| Ok(nodes.steps() >= steps);
    nodes.until("all pods are ready", Nodes::all_ready).unwrap();
    nodes.until("2 steps are done", after(2)).unwrap();
    // A machine is lost.
    nodes.signal("g2rl-worker", 0, "-KILL", true).unwrap();
    nodes.until("6 steps are done", after(6)).unwrap();
    // The coordinator's machine is drained; it says itself that it is not done, without a condition on its pod.
    nodes.signal("g2rl-coordinator", 0, "-TERM", false).unwrap();
    nodes.until("the coordinator is replaced", |nodes| Ok(nodes.used.get() > 4)).unwrap();
    nodes.until("12 steps are done", after(12)).unwrap();
    // It is killed for its memory.
    nodes.signal("g2rl-coordinator", 0, "-KILL", false).unwrap();
    nodes.until("18 steps are done", after(18)).unwrap();
    // A worker's machine is drained.
    nodes.signal("g2rl-worker", 1, "-TERM", true).unwrap();
    let since = Instant::now();
    while !nodes.look().unwrap() {
        assert!(since.elapsed() < WHOLE, "the run does not end:\n{}", nodes.events.join("\n"));
        std::thread::park_timeout(PERIOD);
    }
    println!("{}", nodes.events.join("\n"));

    let journal = rusqlite::Connection::open(nodes.journal()).unwrap();
    let count = |query: &str| journal.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM step"), 40);
    assert_eq!(count("SELECT count(*) FROM rollout"), 40 * 6 * 4, "each rollout counts once");
    let failures: Vec<i32> = nodes.slots.iter().map(|slot| slot.failures).collect();
    // Only the coordinator that was killed without a drain counts as a failure.
    assert_eq!(failures.iter().sum::<i32>(), 1, "{:?}", nodes.events);
    assert_eq!(nodes.used.get(), 7, "three pods at first, and four replacements");
}
