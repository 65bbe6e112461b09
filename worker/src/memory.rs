//! How much memory there is, is free and is used.

use g2rl_ffi::cuda;
use tch::Device;

/// What is assumed free where the system does not tell.
const UNKNOWN_FREE_BYTES: u64 = 4 << 30;

/// Free memory of a device, bytes; for the CPU what the system can give without swapping, and no
/// more than the control group allows.
#[must_use]
pub fn free_bytes(device: Device) -> u64 {
    match device {
        Device::Cuda(index) => cuda::mem_get_info(index).map_or(UNKNOWN_FREE_BYTES, |info| info.free),
        _ => {
            let system = kilobytes("/proc/meminfo", "MemAvailable:").unwrap_or(UNKNOWN_FREE_BYTES);
            system.min(group_headroom().unwrap_or(u64::MAX))
        }
    }
}

/// Memory the device's allocator holds for live tensors, bytes; 0 on a CPU.
#[must_use]
pub fn device_bytes(device: Device) -> u64 {
    match device {
        Device::Cuda(index) => cuda::memory_stats(index).map_or(0, |stats| stats.allocated),
        _ => 0,
    }
}

/// Resident memory of this process, bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    kilobytes("/proc/self/status", "VmRSS:").unwrap_or(0)
}

/// Largest resident memory of this process so far, bytes.
#[must_use]
pub fn peak_resident_bytes() -> u64 {
    kilobytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// Limit less use of the control group (version 2) this process is in.
fn group_headroom() -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
    };
    Some(number("memory.max")?.saturating_sub(number("memory.current")?))
}

/// A value that `/proc` gives in kB, as bytes.
fn kilobytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Bytes for people: `1.5 GiB`.
#[must_use]
pub fn readable(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory_and_the_machine_has_some() {
        assert!(resident_bytes() > 1 << 20);
        assert!(peak_resident_bytes() >= resident_bytes() / 2);
        assert!(free_bytes(Device::Cpu) > 1 << 20);
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(readable(512), "512 B");
        assert_eq!(readable(1536 << 20), "1.5 GiB");
    }
}
