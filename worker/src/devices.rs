//! Which devices of this machine get a rank.

use anyhow::bail;
use tch::Device;

/// `--devices`, parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// One for each rank. A GPU is there once, the CPU as often as it was named.
    pub ranks: Vec<Device>,
    /// One device that was asked for by name is this process's own; `all` and lists are supervised.
    pub alone: bool,
}

/// Parses `all`, `cpu` or a list of devices.
///
/// # Errors
/// If a name is unknown, a GPU is not there, or a GPU is named twice.
pub fn parse(text: &str) -> anyhow::Result<Devices> {
    let gpus = g2rl_ffi::cuda::device_count();
    if text == "all" {
        let ranks = if gpus == 0 { vec![Device::Cpu] } else { (0..gpus).map(Device::Cuda).collect() };
        return Ok(Devices { ranks, alone: false });
    }
    let mut ranks = Vec::new();
    for name in text.split(',').map(str::trim) {
        let device = match name.strip_prefix("cuda:").map(str::parse::<usize>) {
            _ if name == "cpu" => Device::Cpu,
            Some(Ok(index)) if index < gpus => Device::Cuda(index),
            Some(Ok(index)) => bail!("device cuda:{index} is not there: {gpus} GPUs found"),
            _ => bail!("device {name} is unknown; use all, cpu or a list such as cuda:0,cuda:1"),
        };
        if device != Device::Cpu && ranks.contains(&device) {
            bail!("device {name} is named twice");
        }
        ranks.push(device);
    }
    Ok(Devices { alone: ranks.len() == 1, ranks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_supervised_and_a_named_device_is_not() {
        assert_eq!(parse("cpu").unwrap(), Devices { ranks: vec![Device::Cpu], alone: true });
        assert_eq!(parse("cpu, cpu").unwrap(), Devices { ranks: vec![Device::Cpu; 2], alone: false });
        assert!(!parse("all").unwrap().alone);
        assert!(parse("gpu").unwrap_err().to_string().contains("gpu"));
        assert!(parse("cuda:99").unwrap_err().to_string().contains("cuda:99"));
    }
}
