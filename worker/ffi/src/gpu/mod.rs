//! Kernels of the project's own on GPUs, in bf16: what decoding and the update do between products.
//!
//! The build compiles them to PTX (build/kernels.rs), and a GPU's driver compiles that for itself when a module is first
//! used. Every call is asynchronous on libtorch's current stream, looks at no value and can be captured in a graph once it
//! has run before.

pub mod attention;
pub mod head;
pub mod rows;
pub mod sampling;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::error::{FfiError, Result, check};
use crate::raw;

/// Whether this build has the kernels.
pub const BUILT: bool = cfg!(g2rl_kernels);

/// Whether the kernels take a tensor: bf16 on a GPU.
#[must_use]
pub fn takes(tensor: &Tensor) -> bool {
    BUILT && matches!(tensor.device(), Device::Cuda(_)) && tensor.kind() == Kind::BFloat16
}

/// PTX, ending in a zero byte.
#[derive(Debug, Clone, Copy)]
struct Module(&'static [u8]);

#[cfg(g2rl_kernels)]
macro_rules! module {
    ($name:literal) => {
        Module(include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".ptx")))
    };
}
#[cfg(not(g2rl_kernels))]
macro_rules! module {
    ($name:literal) => {
        Module(b"\0")
    };
}
use module;

/// One of a module's kernels.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    module: Module,
    name: &'static str,
}

/// An argument as the kernel declares it.
#[derive(Debug, Clone, Copy)]
enum Argument {
    Pointer(*mut c_void),
    Long(i64),
    Int(i32),
    Float(f32),
}

impl Argument {
    /// A tensor's first element; the caller has checked what the kernel reads from there.
    fn of(tensor: &Tensor) -> Self {
        Self::Pointer(tensor.data_ptr())
    }

    fn optional(tensor: Option<&Tensor>) -> Self {
        tensor.map_or(Self::Pointer(std::ptr::null_mut()), Self::of)
    }
}

/// Sizes of a launch.
#[derive(Debug, Clone, Copy)]
struct Launch {
    grid: [i64; 3],
    block: u32,
    shared_bytes: u32,
}

/// Modules and functions that were loaded, by device and address of the PTX. Addresses of the driver's objects, which
/// live as long as the process.
#[derive(Default)]
struct Loaded {
    modules: HashMap<(i32, usize), usize>,
    functions: HashMap<(i32, usize, &'static str), usize>,
}

static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

impl Kernel {
    const fn new(module: Module, name: &'static str) -> Self {
        Self { module, name }
    }

    fn function(&self, device: i32) -> Result<*mut c_void> {
        const OPERATION: &str = "gpu::load";
        let Some(Ok(ptx)) = BUILT.then(|| CStr::from_bytes_with_nul(self.module.0)) else {
            return Err(FfiError::NoCuda { operation: OPERATION, message: "built without kernels".into() });
        };
        let address = ptx.as_ptr() as usize;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.get_or_insert_default();
        if let Some(function) = loaded.functions.get(&(device, address, self.name)) {
            return Ok(*function as *mut c_void);
        }
        let module = match loaded.modules.get(&(device, address)) {
            Some(module) => *module as *mut c_void,
            None => {
                let mut module = std::ptr::null_mut();
                // SAFETY: the text is static, and `module` a valid place for the result; the device is checked.
                check(OPERATION, unsafe { raw::g2rl_gpu_module(device, ptx.as_ptr(), &mut module) })?;
                loaded.modules.insert((device, address), module as usize);
                module
            }
        };
        let name =
            CString::new(self.name).map_err(|error| FfiError::invalid(OPERATION, error.to_string()))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module was loaded above or before, and is never unloaded.
        check(OPERATION, unsafe { raw::g2rl_gpu_function(module, name.as_ptr(), &mut function) })?;
        loaded.functions.insert((device, address, self.name), function as usize);
        Ok(function)
    }

    /// Hands the kernel to the current stream of the device that `on` is on. Launches nothing if the grid is empty.
    ///
    /// # Safety
    /// The arguments must be those that the kernel declares, and name memory of that device as large as it reads and
    /// writes.
    unsafe fn launch(
        &self,
        operation: &'static str,
        on: &Tensor,
        sizes: Launch,
        arguments: &[Argument],
    ) -> Result<()> {
        let Device::Cuda(device) = on.device() else {
            return Err(FfiError::NoCuda { operation, message: format!("{:?} is no GPU", on.device()) });
        };
        let device = i32::try_from(device).unwrap_or(-1);
        if sizes.grid.contains(&0) {
            return Ok(());
        }
        let too_large = |_| FfiError::invalid(operation, format!("a grid of {:?}", sizes.grid));
        let mut grid = [0u32; 3];
        for (to, from) in grid.iter_mut().zip(sizes.grid) {
            *to = u32::try_from(from).map_err(too_large)?;
        }
        let function = self.function(device)?;
        let mut pointers: Vec<*mut c_void> = arguments
            .iter()
            .map(|argument| match argument {
                Argument::Pointer(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::Long(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::Int(value) => std::ptr::from_ref(value).cast_mut().cast(),
                Argument::Float(value) => std::ptr::from_ref(value).cast_mut().cast(),
            })
            .collect();
        // SAFETY: the driver copies the arguments before it returns; that they are right is the caller's promise.
        check(operation, unsafe {
            raw::g2rl_gpu_launch(
                device,
                function,
                grid.as_ptr(),
                sizes.block,
                sizes.shared_bytes,
                pointers.as_mut_ptr(),
            )
        })
    }
}

/// An error if a condition on the arguments does not hold.
fn require(operation: &'static str, holds: bool, what: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(FfiError::invalid(operation, what)) }
}

/// Whether a tensor is contiguous bf16 on the same GPU as `other`.
fn fits(tensor: &Tensor, other: &Tensor) -> bool {
    takes(tensor) && tensor.device() == other.device() && tensor.is_contiguous()
}

/// Blocks for `count` items, so many each.
fn blocks_of(count: i64, each: i64) -> i64 {
    (count + each - 1) / each
}
