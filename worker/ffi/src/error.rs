//! The one error of this crate, made from the status that every C function returns.

use std::ffi::CStr;

use crate::raw::{self, Status};

/// The result of a call into libtorch.
pub type Result<T> = std::result::Result<T, FfiError>;

/// Why a call into libtorch failed. Every variant names the operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FfiError {
    /// libtorch refused, or a peer of a collective is gone.
    #[error("{operation}: {message}")]
    Failed {
        /// The operation.
        operation: &'static str,
        /// What libtorch said, without its backtrace.
        message: String,
    },
    /// A deadline passed.
    #[error("{operation}: timeout: {message}")]
    Timeout {
        /// The operation.
        operation: &'static str,
        /// What was waited for.
        message: String,
    },
    /// The process group was aborted.
    #[error("{operation}: {message}")]
    Aborted {
        /// The operation.
        operation: &'static str,
        /// The cause.
        message: String,
    },
    /// An argument breaks the operation's contract.
    #[error("{operation}: {message}")]
    InvalidInput {
        /// The operation.
        operation: &'static str,
        /// Which argument, and its bounds.
        message: String,
    },
    /// A row of logits holds NaN or infinity.
    #[error("{operation}: row {row} holds logits that are not finite")]
    NotFinite {
        /// The operation.
        operation: &'static str,
        /// First such row.
        row: usize,
    },
    /// The operation needs a GPU that is not there, or a build with CUDA.
    #[error("{operation} needs CUDA: {message}")]
    NoCuda {
        /// The operation.
        operation: &'static str,
        /// What is missing.
        message: String,
    },
}

impl FfiError {
    /// Whether another attempt in a new process group may succeed: a peer was lost, was too slow,
    /// or the group was aborted.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::Timeout { .. } | Self::Aborted { .. } => true,
            Self::InvalidInput { .. } | Self::NotFinite { .. } | Self::NoCuda { .. } => false,
        }
    }

    pub(crate) fn invalid(operation: &'static str, message: impl Into<String>) -> Self {
        Self::InvalidInput { operation, message: message.into() }
    }
}

// Codes of csrc/status.h.
const OK: i32 = 0;
const TIMEOUT: i32 = 2;
const ABORTED: i32 = 3;
const INVALID: i32 = 4;
const NOT_FINITE: i32 = 5;
const NO_CUDA: i32 = 6;

/// Turns a status into a result and frees its message.
pub(crate) fn check(operation: &'static str, status: Status) -> Result<()> {
    let message = take_message(&status);
    match status.code {
        OK => Ok(()),
        TIMEOUT => Err(FfiError::Timeout { operation, message }),
        ABORTED => Err(FfiError::Aborted { operation, message }),
        INVALID => Err(FfiError::InvalidInput { operation, message }),
        NOT_FINITE => {
            Err(FfiError::NotFinite { operation, row: usize::try_from(status.detail).unwrap_or(0) })
        }
        NO_CUDA => Err(FfiError::NoCuda { operation, message }),
        _ => Err(FfiError::Failed { operation, message }),
    }
}

fn take_message(status: &Status) -> String {
    if status.message.is_null() {
        return String::new();
    }
    // SAFETY: a message that is not null is a C string that the shim allocated for this status.
    let message = unsafe { CStr::from_ptr(status.message) }.to_string_lossy().trim_end().to_owned();
    // SAFETY: the message is freed once: `check` consumes the only status that names it.
    unsafe { raw::g2rl_message_free(status.message) };
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_has_no_message() {
        assert_eq!(check("test", Status { code: OK, detail: 0, message: std::ptr::null_mut() }), Ok(()));
    }

    #[test]
    fn the_row_is_kept() {
        let status = Status { code: NOT_FINITE, detail: 7, message: std::ptr::null_mut() };
        assert_eq!(check("test", status), Err(FfiError::NotFinite { operation: "test", row: 7 }));
    }
}
