//! The end of a process that cannot end as others do.

/// Ends the process at once: no destructors, no exit handlers, nothing flushed. For a process one of whose
/// threads hangs inside libtorch, whose exit handlers would wait for it.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` takes any number and does not return; nothing of this process is used after it.
    unsafe { libc::_exit(code) }
}
