//! Host memory that a GPU reads and writes at its link's full speed.

use tch::{Device, Kind, TchError, Tensor};

/// `[numel] f32` in host memory, not written yet; pinned for a GPU, where that can be had. libtorch pins powers of
/// two ([`pinned_bytes`]).
///
/// # Errors
/// [`TchError`] if the memory cannot be had.
pub fn empty(numel: i64, device: Device) -> Result<Tensor, TchError> {
    let host = Tensor::f_empty([numel], (Kind::Float, Device::Cpu))?;
    match device {
        Device::Cpu => Ok(host),
        device => Ok(host.f_pin_memory(device).unwrap_or(host)),
    }
}

/// Bytes that libtorch pins for a tensor of so many.
#[must_use]
pub fn pinned_bytes(bytes: u64) -> u64 {
    bytes.next_power_of_two()
}
