//! Several hosts on one machine: network namespaces with addresses of their own on a common bridge.

use std::process::Command;

use anyhow::{Context, bail};

/// The bridge's subnet, unused outside of the namespaces.
const SUBNET: &str = "10.77.0";

/// The coordinator's host.
pub const HUB: &str = "hub";

/// A host: everything that runs on it sees its network only.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    /// Its address.
    pub address: String,
}

impl Host {
    /// The command, to run on this host.
    #[must_use]
    pub fn command(&self, command: &Command) -> Command {
        let mut here = Command::new("ip");
        here.args(["netns", "exec", &self.namespace]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => here.env(name, value),
                None => here.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            here.current_dir(dir);
        }
        here
    }
}

/// The hosts of a test. They are gone when it is dropped.
#[derive(Debug)]
pub struct Hosts {
    prefix: String,
    names: Vec<String>,
}

impl Hosts {
    /// A hub and other hosts, each with one interface `eth0`.
    ///
    /// # Errors
    /// If the system does not permit it; the error says what was refused.
    pub fn new(names: &[&str]) -> anyhow::Result<Self> {
        let mut hosts = Self { prefix: format!("g2rl-{}", std::process::id()), names: Vec::new() };
        hosts.add(HUB)?;
        hosts.on(HUB, &["link", "add", "bridge", "type", "bridge"])?;
        hosts.on(HUB, &["addr", "add", &format!("{}/24", hosts.address(0)), "dev", "bridge"])?;
        hosts.on(HUB, &["link", "set", "bridge", "up"])?;
        for &name in names {
            hosts.add(name)?;
            let (namespace, address) = (hosts.namespace(name), hosts.address(hosts.names.len() - 1));
            hosts.on(
                HUB,
                &["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", &namespace],
            )?;
            hosts.on(HUB, &["link", "set", name, "master", "bridge", "up"])?;
            hosts.on(name, &["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
            hosts.on(name, &["link", "set", "eth0", "up"])?;
        }
        Ok(hosts)
    }

    /// One of them.
    ///
    /// # Panics
    /// If there is none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Host {
        let at = self.names.iter().position(|known| known == name).expect("a host of the test");
        Host { namespace: self.namespace(name), address: self.address(at) }
    }

    /// Takes a host off the network; what is sent to it is lost without a word.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn cut_off(&self, name: &str) -> anyhow::Result<()> {
        self.on(HUB, &["link", "set", name, "down"])
    }

    /// Puts it back.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn put_back(&self, name: &str) -> anyhow::Result<()> {
        self.on(HUB, &["link", "set", name, "up"])
    }

    fn add(&mut self, name: &str) -> anyhow::Result<()> {
        ip(&["netns", "add", &self.namespace(name)])?;
        self.names.push(name.to_owned());
        self.on(name, &["link", "set", "lo", "up"])
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn address(&self, host: usize) -> String {
        format!("{SUBNET}.{}", host + 1)
    }

    fn on(&self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let namespace = self.namespace(name);
        ip(&[["-n", namespace.as_str()].as_slice(), arguments].concat())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // What is left of a namespace after a failure harms nobody.
            let _ = ip(&["netns", "del", &self.namespace(name)]);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip")?;
    if output.status.success() {
        return Ok(());
    }
    bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())
}
