//! How steps reach the device: one operation after the other, or as captured graphs.
//!
//! On a GPU a decode step is many short kernels; launching them one by one takes longer than running them.
//! A graph of each key is captured once and then replayed as one launch.
//!
//! Invariants
//! - Graphs run on a stream of their own. It waits for what the thread's stream was given before
//!   ([`Launch::enter`]); the caller waits for the results before the guard is dropped.
//! - A new key is rehearsed before it is captured: one silent run, in which no row is alive. Nothing that a
//!   rollout is made of changes by it. A CPU, which has no graphs, rehearses too, so that tests there cover it.
//! - Graphs share the memory of their intermediate results, which is right because they are replayed one
//!   after another and leave nothing there. They stay alive together.
//! - A key that cannot be captured is launched operation by operation, with the same results.

use std::collections::{HashMap, HashSet};

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
    /// The same, after a rehearsal of each key.
    Rehearsed(HashSet<StepKey>),
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
    /// Graphs, if they are wanted, on devices that have them.
    pub(super) fn new(device: Device, graphs: bool) -> Result<Self, FfiError> {
        Ok(match device {
            _ if !graphs => Self::Eager,
            Device::Cuda(device) => Self::Graphs(Graphs {
                device,
                stream: Stream::new(device, true)?,
                captured: Vec::new(),
                keys: HashMap::new(),
            }),
            _ => Self::Rehearsed(HashSet::new()),
        })
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

    /// Rehearses the step, and captures its graph, if it is new. `true` if so: all rows are silent then and have
    /// to be written again. The rows must have been written before: the rehearsal reads them.
    pub(super) fn prepare(&mut self, step: &Step<'_>) -> Result<bool, RolloutError> {
        let new = match self {
            Self::Eager => false,
            Self::Rehearsed(keys) => keys.insert(step.key),
            Self::Graphs(graphs) => !graphs.keys.contains_key(&step.key),
        };
        if new {
            step.state.silence()?;
            step.run()?;
            step.state.silence()?;
        }
        if let (true, Self::Graphs(graphs)) = (new, self) {
            graphs.add(step)?;
        }
        Ok(new)
    }

    /// Runs a prepared step, or hands it to the stream.
    pub(super) fn step(&self, step: &Step<'_>) -> Result<(), RolloutError> {
        let graph = match self {
            Self::Eager | Self::Rehearsed(_) => None,
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
    /// Captures a step that was rehearsed: its kernels are loaded and the libraries have their workspaces, which
    /// a capture forbids to get.
    fn add(&mut self, step: &Step<'_>) -> Result<(), RolloutError> {
        self.stream.synchronize()?;
        // The memory of the rehearsal is free for the graph.
        cuda::empty_cache()?;
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
