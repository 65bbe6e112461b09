//! How steps reach the device: one operation after the other, or as captured graphs.
//!
//! On a GPU a decode step is many short kernels; launching them one by one takes longer than running them.
//! A graph of each key is captured once and then replayed as one launch.
//!
//! Invariants
//! - Graphs run on a stream of their own. It waits for what the thread's stream was given before
//!   ([`Launch::enter`]); the caller waits for the results before the guard is dropped.
//! - Capturing changes no row: all of them are silent during the run before it, and the capture itself runs
//!   nothing.
//! - Graphs share the memory of their intermediate results, which is right because they are replayed one
//!   after another and leave nothing there. They stay alive together.
//! - A key that cannot be captured is launched operation by operation, with the same results.

use std::collections::HashMap;

use g2rl_ffi::FfiError;
use g2rl_ffi::cuda::{self, Event, Graph, Stream, StreamGuard};
use tch::Device;

use super::super::RolloutError;
use super::step::{Step, StepKey};

/// How steps reach the device.
#[derive(Debug)]
pub(super) enum Launch {
    /// Operation by operation, on the thread's stream.
    Eager,
    /// As graphs where they can be captured.
    Graphs(Graphs),
}

/// The captured graphs of one device.
#[derive(Debug)]
pub(super) struct Graphs {
    device: usize,
    stream: Stream,
    captured: Vec<Graph>,
    /// Place in `captured`; `None` for keys that cannot be captured.
    keys: HashMap<StepKey, Option<usize>>,
}

impl Launch {
    /// Graphs on GPUs, if they are wanted.
    pub(super) fn new(device: Device, graphs: bool) -> Result<Self, FfiError> {
        match device {
            Device::Cuda(device) if graphs => Ok(Self::Graphs(Graphs {
                device,
                stream: Stream::new(device, true)?,
                captured: Vec::new(),
                keys: HashMap::new(),
            })),
            _ => Ok(Self::Eager),
        }
    }

    /// Makes the graphs' stream the thread's, after all that the thread's stream was given before. The
    /// guard restores the thread's stream; wait for the results first.
    pub(super) fn enter(&self) -> Result<Option<StreamGuard>, FfiError> {
        let Self::Graphs(graphs) = self else { return Ok(None) };
        let before = Event::new()?;
        before.record(&Stream::current(graphs.device)?)?;
        graphs.stream.wait_event(&before)?;
        Ok(Some(graphs.stream.enter(graphs.device)?))
    }

    /// Captures the step's graph if it is new. Rows must be written afterwards: they are silent then.
    pub(super) fn prepare(&mut self, step: &Step<'_>) -> Result<(), RolloutError> {
        match self {
            Self::Eager => Ok(()),
            Self::Graphs(graphs) => graphs.prepare(step),
        }
    }

    /// Runs a prepared step, or hands it to the stream.
    pub(super) fn step(&self, step: &Step<'_>) -> Result<(), RolloutError> {
        let graph = match self {
            Self::Eager => None,
            Self::Graphs(graphs) => {
                graphs.keys.get(&step.key).copied().flatten().map(|at| &graphs.captured[at])
            }
        };
        match graph {
            Some(graph) => Ok(graph.replay()?),
            None => step.run(),
        }
    }

    /// Drops all graphs: buffers that they name are about to move.
    pub(super) fn forget(&mut self) {
        if let Self::Graphs(graphs) = self {
            graphs.keys.clear();
            graphs.captured.clear();
        }
    }
}

impl Graphs {
    fn prepare(&mut self, step: &Step<'_>) -> Result<(), RolloutError> {
        if self.keys.contains_key(&step.key) {
            return Ok(());
        }
        // 1. Once without capture: kernels are loaded and libraries get their workspaces, which a capture
        //    forbids. What this took is then free for the graph.
        step.state.silence()?;
        step.run()?;
        self.stream.synchronize()?;
        cuda::empty_cache()?;
        // 2. The capture.
        step.state.silence()?;
        self.stream.synchronize()?;
        let place = match self.capture(step) {
            Ok(graph) => {
                self.captured.push(graph);
                Some(self.captured.len() - 1)
            }
            Err(error) => {
                tracing::warn!(%error, key = ?step.key, "a decode step cannot be captured; it runs uncaptured");
                None
            }
        };
        self.keys.insert(step.key, place);
        tracing::debug!(key = ?step.key, graphs = self.captured.len(), "captured a decode step");
        Ok(())
    }

    fn capture(&self, step: &Step<'_>) -> Result<Graph, RolloutError> {
        let mut graph = Graph::new()?;
        graph.capture_begin(self.captured.first())?;
        let recorded = step.run();
        // Ended in any case: a stream that captures can do nothing else.
        let ended = graph.capture_end();
        recorded?;
        ended?;
        Ok(graph)
    }
}
