//! Collectives between ranks over libtorch's c10d: Gloo between CPUs, NCCL between GPUs.
//!
//! A [`TcpStore`] on rank 0 lets ranks find each other; a [`ProcessGroup`] over it runs the
//! collectives. All ranks must start the same operations in the same order, and every wait has a
//! deadline. After any error the group is of no more use: drop it and make another, with a prefix
//! that was not used before. Nothing here retries.

use std::ffi::CString;
use std::fmt;
use std::net::TcpListener;
use std::os::fd::IntoRawFd;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

use crate::error::{FfiError, Result, check};
use crate::raw::{self, pointer};

/// Which library moves the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// TCP between CPUs.
    Gloo,
    /// NCCL between GPUs; operations use the calling thread's current device.
    Nccl,
}

/// How the ranks' tensors are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// Sum.
    Sum,
    /// Mean. Over Gloo the sum is divided when the operation is waited for.
    Average,
    /// Largest.
    Max,
}

impl ReduceOp {
    /// Number of the operation in csrc/process_group.cpp.
    fn code(self) -> i32 {
        match self {
            Self::Sum => 0,
            Self::Average => 1,
            Self::Max => 2,
        }
    }
}

/// A key-value store that one process hosts and all ranks of a group can reach.
pub struct TcpStore {
    store: NonNull<raw::Store>,
}

// SAFETY: a c10d TCPStore guards its socket and server by locks; groups use a clone of their own.
unsafe impl Send for TcpStore {}
// SAFETY: as above; the methods that take `&self` only read the port or clone the store.
unsafe impl Sync for TcpStore {}

impl TcpStore {
    /// Hosts a store on an address of this machine; port 0 lets the system choose. `timeout` bounds
    /// the store's own operations.
    ///
    /// # Errors
    /// [`FfiError`] if the address cannot be bound.
    pub fn host(bind_host: &str, port: u16, timeout: Duration) -> Result<Self> {
        const NAME: &str = "process_group::TcpStore::host";
        let bind = |what: &dyn fmt::Display| FfiError::Failed {
            operation: NAME,
            message: format!("{bind_host}:{port} cannot be bound: {what}"),
        };
        let host = c_string(NAME, bind_host)?;
        // Bound here, so that the port is known before anyone is told and nobody can take it.
        let listener = TcpListener::bind((bind_host, port)).map_err(|error| bind(&error))?;
        let port = listener.local_addr().map_err(|error| bind(&error))?.port();
        let mut store = ptr::null_mut();
        // SAFETY: `host` is a C string that lives for the call, the socket is open and handed over,
        // and `store` is a valid place for the result.
        let status = unsafe {
            raw::g2rl_store_host(host.as_ptr(), port, listener.into_raw_fd(), millis(timeout), &mut store)
        };
        Self::own(NAME, status, store)
    }

    /// Connects to a store, trying again until `timeout` if it is not there yet.
    ///
    /// # Errors
    /// [`FfiError`] if the store cannot be reached in time.
    pub fn connect(host: &str, port: u16, timeout: Duration) -> Result<Self> {
        const NAME: &str = "process_group::TcpStore::connect";
        let host = c_string(NAME, host)?;
        let mut store = ptr::null_mut();
        // SAFETY: `host` is a C string that lives for the call; `store` is a valid place.
        let status = unsafe { raw::g2rl_store_connect(host.as_ptr(), port, millis(timeout), &mut store) };
        Self::own(NAME, status, store)
    }

    fn own(operation: &'static str, status: raw::Status, store: *mut raw::Store) -> Result<Self> {
        check(operation, status)?;
        Ok(Self { store: not_null(operation, store)? })
    }

    /// The port on which the store listens.
    #[must_use]
    pub fn port(&self) -> u16 {
        // SAFETY: the store is alive as long as `self`.
        unsafe { raw::g2rl_store_port(self.store.as_ptr()) }
    }
}

impl Drop for TcpStore {
    fn drop(&mut self) {
        // SAFETY: made by the shim, owned by `self`, freed once. Groups hold references of their own.
        unsafe { raw::g2rl_store_free(self.store.as_ptr()) };
    }
}

impl fmt::Debug for TcpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpStore").field("port", &self.port()).finish()
    }
}

/// One rank's place in a new group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessGroupOptions {
    /// Separates this group's keys in the store. Never use one twice.
    pub prefix: String,
    /// This rank.
    pub rank: u32,
    /// Number of ranks.
    pub world_size: u32,
    /// Deadline of forming the group, and of every operation.
    pub timeout: Duration,
    /// Address of this machine that peers connect to (Gloo).
    pub bind_host: String,
}

/// Ranks that run collectives with each other.
///
/// Dropping a group with operations that have not ended aborts them.
pub struct ProcessGroup {
    group: NonNull<raw::Group>,
    backend: Backend,
    rank: u32,
    world_size: u32,
}

// SAFETY: the shim starts operations under a lock, and abort touches only what c10d locks itself.
unsafe impl Send for ProcessGroup {}
// SAFETY: as above.
unsafe impl Sync for ProcessGroup {}

impl ProcessGroup {
    /// Joins a group; returns when all ranks have.
    ///
    /// # Errors
    /// [`FfiError::Timeout`] or [`FfiError::Failed`] if a rank does not come;
    /// [`FfiError::NoCuda`] for NCCL without a GPU.
    pub fn new(backend: Backend, store: &TcpStore, options: &ProcessGroupOptions) -> Result<Self> {
        const NAME: &str = "process_group::ProcessGroup::new";
        let ProcessGroupOptions { rank, world_size, .. } = *options;
        if rank >= world_size {
            return Err(FfiError::invalid(NAME, format!("rank {rank} of {world_size}")));
        }
        let too_large = |_| FfiError::invalid(NAME, format!("{world_size} ranks"));
        let (prefix, bind_host) = (c_string(NAME, &options.prefix)?, c_string(NAME, &options.bind_host)?);
        let raw_options = raw::GroupOptions {
            nccl: i32::from(backend == Backend::Nccl),
            prefix: prefix.as_ptr(),
            bind_host: bind_host.as_ptr(),
            rank: i32::try_from(rank).map_err(too_large)?,
            world_size: i32::try_from(world_size).map_err(too_large)?,
            timeout_ms: millis(options.timeout),
        };
        let mut group = ptr::null_mut();
        // SAFETY: the store is alive, the options and their strings live for the call, and `group` is
        // a valid place for the result.
        check(NAME, unsafe { raw::g2rl_group_new(store.store.as_ptr(), &raw_options, &mut group) })?;
        Ok(Self { group: not_null(NAME, group)?, backend, rank, world_size })
    }

    /// The library that moves the data.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// This rank.
    #[must_use]
    pub fn rank(&self) -> u32 {
        self.rank
    }

    /// Number of ranks.
    #[must_use]
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// Starts to combine `tensor` (contiguous) over all ranks, in place. It must not be touched
    /// until the operation has been waited for.
    ///
    /// # Errors
    /// [`FfiError`] if a peer is known to be gone or the group was aborted.
    pub fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Work> {
        const NAME: &str = "process_group::all_reduce";
        let mut work = ptr::null_mut();
        // SAFETY: group and tensor are alive; the operation keeps a reference to the tensor.
        let status =
            unsafe { raw::g2rl_group_all_reduce(self.group.as_ptr(), pointer(tensor), op.code(), &mut work) };
        Work::own(NAME, status, work)
    }

    /// Starts to copy rank `root`'s `tensor` (contiguous) into that of every other rank.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn broadcast(&self, tensor: &Tensor, root: u32) -> Result<Work> {
        const NAME: &str = "process_group::broadcast";
        if root >= self.world_size {
            return Err(FfiError::invalid(NAME, format!("root {root} of {} ranks", self.world_size)));
        }
        let mut work = ptr::null_mut();
        // SAFETY: group and tensor are alive; the operation keeps a reference to the tensor.
        let status = unsafe {
            raw::g2rl_group_broadcast(self.group.as_ptr(), pointer(tensor), i64::from(root), &mut work)
        };
        Work::own(NAME, status, work)
    }

    /// Starts to sum `tensor` (contiguous) over all ranks into rank `root`'s. Those of the other ranks are
    /// worth nothing afterwards.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn reduce(&self, tensor: &Tensor, root: u32) -> Result<Work> {
        const NAME: &str = "process_group::reduce";
        if root >= self.world_size {
            return Err(FfiError::invalid(NAME, format!("root {root} of {} ranks", self.world_size)));
        }
        let mut work = ptr::null_mut();
        // SAFETY: group and tensor are alive; the operation keeps a reference to the tensor.
        let status = unsafe {
            raw::g2rl_group_reduce(self.group.as_ptr(), pointer(tensor), i64::from(root), &mut work)
        };
        Work::own(NAME, status, work)
    }

    /// The tensors (contiguous, of one shape) of all ranks, in rank order.
    ///
    /// # Errors
    /// [`FfiError`] if a peer is gone or too slow.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>> {
        let mut parts = vec![ptr::null_mut(); self.world_size as usize];
        // SAFETY: group and tensor are alive, and `parts` has room for a pointer of each rank.
        let status =
            unsafe { raw::g2rl_group_all_gather(self.group.as_ptr(), pointer(tensor), parts.as_mut_ptr()) };
        check("process_group::all_gather", status)?;
        // SAFETY: on success each pointer is a new tensor, and this is its only owner.
        Ok(parts.into_iter().map(|part| unsafe { Tensor::from_ptr(part) }).collect())
    }

    /// Combines `tensor` (contiguous, first dimension a multiple of the number of ranks) over all
    /// ranks and returns this rank's share of the first dimension. `tensor`'s content is lost.
    ///
    /// # Errors
    /// [`FfiError`] if a peer is gone or too slow.
    pub fn reduce_scatter(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        let mut share = ptr::null_mut();
        // SAFETY: group and tensor are alive, and `share` is a valid place for the result.
        let status = unsafe {
            raw::g2rl_group_reduce_scatter(self.group.as_ptr(), pointer(tensor), op.code(), &mut share)
        };
        check("process_group::reduce_scatter", status)?;
        // SAFETY: on success `share` is a new tensor, and this is its only owner.
        Ok(unsafe { Tensor::from_ptr(share) })
    }

    /// Returns when every rank has come here.
    ///
    /// # Errors
    /// [`FfiError::Timeout`] if a rank does not come in time.
    pub fn barrier(&self, timeout: Duration) -> Result<()> {
        // SAFETY: the group is alive.
        let status = unsafe { raw::g2rl_group_barrier(self.group.as_ptr(), millis(timeout)) };
        check("process_group::barrier", status)
    }

    /// Ends all operations with [`FfiError::Aborted`], also those that other threads wait for, and
    /// refuses new ones. When it returns over Gloo, no tensor is written by a peer any more.
    ///
    /// # Errors
    /// [`FfiError`] if the backend refuses.
    pub fn abort(&self) -> Result<()> {
        // SAFETY: the group is alive; aborting is safe beside calls of other threads.
        check("process_group::abort", unsafe { raw::g2rl_group_abort(self.group.as_ptr()) })
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: made by the shim, owned by `self`, freed once; no other call can be running.
        unsafe { raw::g2rl_group_free(self.group.as_ptr()) };
    }
}

impl fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, rank, world_size, .. } = self;
        write!(f, "ProcessGroup({backend:?}, rank {rank} of {world_size})")
    }
}

/// A collective that was started.
pub struct Work {
    work: NonNull<raw::Work>,
    operation: &'static str,
}

// SAFETY: a c10d work handle may be waited for on any thread.
unsafe impl Send for Work {}

impl Work {
    fn own(operation: &'static str, status: raw::Status, work: *mut raw::Work) -> Result<Self> {
        check(operation, status)?;
        Ok(Self { work: not_null(operation, work)?, operation })
    }

    /// Waits for the operation's end, at most `timeout` (the group's if `None`). For NCCL it also
    /// makes the calling thread's current stream wait, so the result may be used right away.
    ///
    /// # Errors
    /// [`FfiError::Timeout`], [`FfiError::Aborted`], or [`FfiError::Failed`] if a peer is gone.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<()> {
        // SAFETY: the handle is alive. Waiting again is allowed.
        let status = unsafe { raw::g2rl_work_wait(self.work.as_ptr(), timeout.map_or(-1, millis)) };
        check(self.operation, status)
    }

    /// Whether a wait would return at once, with success or an error.
    ///
    /// # Errors
    /// [`FfiError`] if the backend cannot tell.
    pub fn is_completed(&self) -> Result<bool> {
        let mut completed = false;
        // SAFETY: the handle is alive, and `completed` is a valid place.
        check(self.operation, unsafe { raw::g2rl_work_is_completed(self.work.as_ptr(), &mut completed) })?;
        Ok(completed)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by the shim, owned by `self`, freed once. The operation goes on without it.
        unsafe { raw::g2rl_work_free(self.work.as_ptr()) };
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Work({})", self.operation)
    }
}

fn millis(duration: Duration) -> i64 {
    // c10d adds to the current time, so "for ever" must leave room.
    const LONGEST: u128 = 1000 * 60 * 60 * 24 * 365;
    duration.as_millis().clamp(1, LONGEST) as i64
}

fn c_string(operation: &'static str, text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| FfiError::invalid(operation, format!("{text:?} holds a zero byte")))
}

fn not_null<T>(operation: &'static str, pointer: *mut T) -> Result<NonNull<T>> {
    NonNull::new(pointer)
        .ok_or_else(|| FfiError::Failed { operation, message: "libtorch returned nothing".to_owned() })
}
