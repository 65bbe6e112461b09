//! GPUs: memory, streams, events and captured graphs.
//!
//! Every function exists in every build; where CUDA or a GPU is missing it returns
//! [`FfiError::NoCuda`]. Devices are counted from 0.

use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use crate::error::{FfiError, Result, check};
use crate::raw;

/// Whether a GPU can be used.
#[must_use]
pub fn is_available() -> bool {
    device_count() > 0
}

/// Number of GPUs; 0 without CUDA.
#[must_use]
pub fn device_count() -> usize {
    // SAFETY: takes nothing and does not throw.
    usize::try_from(unsafe { raw::g2rl_cuda_device_count() }).unwrap_or(0)
}

/// What libtorch's allocator holds, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// In live tensors.
    pub allocated: u64,
    /// The largest `allocated` since [`reset_peak`].
    pub peak_allocated: u64,
    /// Taken from the device, in use or cached.
    pub reserved: u64,
}

/// Memory of a device as its driver sees it, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryInfo {
    /// Free for any process.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// The allocator's statistics.
///
/// # Errors
/// [`FfiError::NoCuda`] if the device is not there.
pub fn memory_stats(device: usize) -> Result<MemoryStats> {
    let mut stats = raw::MemoryStats::default();
    // SAFETY: `stats` is a valid place for the result.
    check("cuda::memory_stats", unsafe { raw::g2rl_cuda_memory_stats(index(device), &mut stats) })?;
    let raw::MemoryStats { allocated, peak_allocated, reserved } = stats;
    Ok(MemoryStats { allocated, peak_allocated, reserved })
}

/// Sets the peak to what is allocated now.
///
/// # Errors
/// [`FfiError::NoCuda`] if the device is not there.
pub fn reset_peak(device: usize) -> Result<()> {
    // SAFETY: takes a number only; the device is checked.
    check("cuda::reset_peak", unsafe { raw::g2rl_cuda_reset_peak(index(device)) })
}

/// Gives cached memory that is not in use back to the devices.
///
/// # Errors
/// [`FfiError::NoCuda`] without a GPU.
pub fn empty_cache() -> Result<()> {
    // SAFETY: takes nothing.
    check("cuda::empty_cache", unsafe { raw::g2rl_cuda_empty_cache() })
}

/// Free and total memory of a device.
///
/// # Errors
/// [`FfiError::NoCuda`] if the device is not there.
pub fn mem_get_info(device: usize) -> Result<MemoryInfo> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: both are valid places for the results.
    let status = unsafe { raw::g2rl_cuda_mem_get_info(index(device), &mut free, &mut total) };
    check("cuda::mem_get_info", status)?;
    Ok(MemoryInfo { free, total })
}

/// Waits until the device has done all that was asked of it.
///
/// # Errors
/// [`FfiError::NoCuda`] if the device is not there; [`FfiError::Failed`] if a kernel failed.
pub fn synchronize(device: usize) -> Result<()> {
    // SAFETY: takes a number only; the device is checked.
    check("cuda::synchronize", unsafe { raw::g2rl_cuda_synchronize(index(device)) })
}

/// An index that no device has stands for one that does not fit.
fn index(device: usize) -> i32 {
    i32::try_from(device).unwrap_or(-1)
}

/// Defines an owned handle of the shim with its drop.
macro_rules! handle {
    ($(#[$doc:meta])* $name:ident, $free:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            raw: NonNull<raw::$name>,
        }

        impl $name {
            fn own(operation: &'static str, raw: *mut raw::$name) -> Result<Self> {
                let raw = NonNull::new(raw).ok_or_else(|| FfiError::Failed {
                    operation,
                    message: "libtorch returned nothing".to_owned(),
                })?;
                Ok(Self { raw })
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made by the shim, owned by `self`, freed once.
                unsafe { raw::$free(self.raw.as_ptr()) };
            }
        }

        // SAFETY: the handle is used by one thread at a time (it is not Sync), and CUDA objects
        // are not tied to the thread that made them.
        unsafe impl Send for $name {}
    };
}

handle!(
    /// A queue of a device's work, from libtorch's pool or the current one.
    Stream,
    g2rl_stream_free
);
handle!(
    /// A point in a stream. Records times.
    Event,
    g2rl_event_free
);
handle!(
    /// A sequence of kernels, captured once and replayed as one launch. Tensors that it reads and
    /// writes must stay alive and in place as long as it is replayed.
    Graph,
    g2rl_graph_free
);

/// Values of csrc/cuda.cpp.
const FROM_POOL: i32 = 0;
const HIGH_PRIORITY: i32 = 1;
const CURRENT: i32 = 2;

impl Stream {
    /// A stream from the pool.
    ///
    /// # Errors
    /// [`FfiError::NoCuda`] if the device is not there.
    pub fn new(device: usize, high_priority: bool) -> Result<Self> {
        Self::get("cuda::Stream::new", device, if high_priority { HIGH_PRIORITY } else { FROM_POOL })
    }

    /// The stream that this thread's calls use.
    ///
    /// # Errors
    /// [`FfiError::NoCuda`] if the device is not there.
    pub fn current(device: usize) -> Result<Self> {
        Self::get("cuda::Stream::current", device, CURRENT)
    }

    fn get(operation: &'static str, device: usize, kind: i32) -> Result<Self> {
        let mut stream = ptr::null_mut();
        // SAFETY: `stream` is a valid place for the result; the device is checked.
        check(operation, unsafe { raw::g2rl_stream_get(index(device), kind, &mut stream) })?;
        Self::own(operation, stream)
    }

    /// Waits until the stream is empty.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        check("cuda::Stream::synchronize", unsafe { raw::g2rl_stream_synchronize(self.raw.as_ptr()) })
    }

    /// Makes later work of this stream wait for `event`.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if CUDA refuses.
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        let status = unsafe { raw::g2rl_event_block(event.raw.as_ptr(), self.raw.as_ptr()) };
        check("cuda::Stream::wait_event", status)
    }

    /// Makes this the current stream of this thread until the guard is dropped. The stream's device becomes the
    /// thread's current one, and stays it.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if CUDA refuses.
    pub fn enter(&self, device: usize) -> Result<StreamGuard> {
        let previous = Self::current(device)?;
        // SAFETY: the stream is alive; libtorch keeps its own copy.
        check("cuda::Stream::enter", unsafe { raw::g2rl_stream_make_current(self.raw.as_ptr()) })?;
        Ok(StreamGuard { previous, _not_send: PhantomData })
    }
}

/// Restores the previous current stream when dropped.
#[derive(Debug)]
pub struct StreamGuard {
    previous: Stream,
    /// The current stream belongs to a thread, so the guard stays on it.
    _not_send: PhantomData<*mut ()>,
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        // SAFETY: the previous stream is alive. It was current before, so it cannot be refused.
        let status = unsafe { raw::g2rl_stream_make_current(self.previous.raw.as_ptr()) };
        let restored = check("cuda::StreamGuard", status);
        debug_assert_eq!(restored, Ok(()));
    }
}

impl Event {
    /// An event that was not recorded yet.
    ///
    /// # Errors
    /// [`FfiError::NoCuda`] without a GPU.
    pub fn new() -> Result<Self> {
        let mut event = ptr::null_mut();
        // SAFETY: `event` is a valid place for the result.
        check("cuda::Event::new", unsafe { raw::g2rl_event_new(&mut event) })?;
        Self::own("cuda::Event::new", event)
    }

    /// Marks the present end of `stream`.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if CUDA refuses.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        check("cuda::Event::record", unsafe {
            raw::g2rl_event_record(self.raw.as_ptr(), stream.raw.as_ptr())
        })
    }

    /// Whether the stream has passed the event.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if a kernel failed.
    pub fn query(&self) -> Result<bool> {
        let mut reached = false;
        // SAFETY: the event is alive, and `reached` is a valid place.
        check("cuda::Event::query", unsafe { raw::g2rl_event_query(self.raw.as_ptr(), &mut reached) })?;
        Ok(reached)
    }

    /// Waits until the stream has passed the event.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        check("cuda::Event::synchronize", unsafe { raw::g2rl_event_synchronize(self.raw.as_ptr()) })
    }

    /// Milliseconds from this event to `end`; both must have been reached.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if one was not recorded or not reached.
    pub fn elapsed_ms(&self, end: &Self) -> Result<f64> {
        let mut elapsed = 0.0;
        // SAFETY: both are alive, and `elapsed` is a valid place.
        check("cuda::Event::elapsed_ms", unsafe {
            raw::g2rl_event_elapsed_ms(self.raw.as_ptr(), end.raw.as_ptr(), &mut elapsed)
        })?;
        Ok(elapsed)
    }
}

impl Graph {
    /// An empty graph.
    ///
    /// # Errors
    /// [`FfiError::NoCuda`] without a GPU.
    pub fn new() -> Result<Self> {
        let mut graph = ptr::null_mut();
        // SAFETY: `graph` is a valid place for the result.
        check("cuda::Graph::new", unsafe { raw::g2rl_graph_new(&mut graph) })?;
        Self::own("cuda::Graph::new", graph)
    }

    /// Starts to record what this thread puts on its current stream, which must not be the default
    /// one (see [`Stream::enter`]). Graphs that are replayed one after another may share the
    /// memory of `pool`, a captured graph.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if CUDA refuses.
    pub fn capture_begin(&mut self, pool: Option<&Self>) -> Result<()> {
        let pool = pool.map_or(ptr::null_mut(), |graph| graph.raw.as_ptr());
        // SAFETY: the graph is alive, and so is the pool's if there is one.
        check("cuda::Graph::capture_begin", unsafe { raw::g2rl_graph_capture_begin(self.raw.as_ptr(), pool) })
    }

    /// Ends the recording, on the stream where it began.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if a call between cannot be captured.
    pub fn capture_end(&mut self) -> Result<()> {
        // SAFETY: the graph is alive.
        check("cuda::Graph::capture_end", unsafe { raw::g2rl_graph_capture_end(self.raw.as_ptr()) })
    }

    /// Puts the recorded work on this thread's current stream.
    ///
    /// # Errors
    /// [`FfiError::Failed`] if nothing was captured.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the graph is alive.
        check("cuda::Graph::replay", unsafe { raw::g2rl_graph_replay(self.raw.as_ptr()) })
    }
}
