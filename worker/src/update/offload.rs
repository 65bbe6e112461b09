//! Optimizer steps over state in host memory, which passes through the device in chunks.
//!
//! A chunk's master weights and moments are sent to the device, stepped there beside its gradients, and sent back,
//! with the new weights rounded into the compute weights on the way. On a GPU two streams take turns, so that one
//! chunk arrives while the one before leaves; a step then takes the time in which the link carries 12 bytes a
//! parameter one way.

use g2rl_ffi::FfiError;
use g2rl_ffi::cuda::{Event, Stream, StreamGuard};
use g2rl_ffi::kernels::{AdamWOptions, AdamWTensors, fused_adamw};
use tch::{Device, Kind, Tensor};

use super::UpdateError;
use crate::model::shard::Piece;

/// Elements of a chunk: 400 MB of state on the device.
pub const CHUNK: i64 = 1 << 25;

/// Chunks on the device at a time.
pub const LANES: usize = 2;

/// What one chunk's step reads and writes, equal pieces of flat tensors.
#[derive(Debug)]
pub struct Chunk {
    /// f32 master weights, in host memory unless they are what is computed with.
    pub master: Tensor,
    /// First moments, in host memory.
    pub exp_avg: Tensor,
    /// Second moments, in host memory.
    pub exp_avg_sq: Tensor,
    /// Gradients, on the device.
    pub gradients: Tensor,
    /// What is computed with, on the device.
    pub compute: Tensor,
}

/// Steps chunk after chunk. Every one is complete after [`Self::finish`].
#[derive(Debug)]
pub struct Offload {
    device: Device,
    /// Two on a GPU, which take turns.
    streams: Vec<Stream>,
    next: usize,
    leaving: Option<Leaving>,
}

/// A chunk that is being stepped on the device.
#[derive(Debug)]
struct Leaving {
    lane: usize,
    /// Where it goes, and what it is there: master weights and moments.
    state: [(Tensor, Tensor); 3],
}

impl Offload {
    /// Steps on `device`, after all that its current stream was told before.
    ///
    /// # Errors
    /// [`FfiError`] if CUDA refuses.
    pub fn new(device: Device) -> Result<Self, FfiError> {
        let mut streams = Vec::new();
        if let Device::Cuda(index) = device {
            let ready = Event::new()?;
            ready.record(&Stream::current(index)?)?;
            for _ in 0..LANES {
                let stream = Stream::new(index, false)?;
                stream.wait_event(&ready)?;
                streams.push(stream);
            }
        }
        Ok(Self { device, streams, next: 0, leaving: None })
    }

    /// Starts one chunk's step, number `step` from 1, and ends the step of the one before.
    ///
    /// # Errors
    /// [`UpdateError`] if libtorch refuses.
    pub fn step(&mut self, chunk: Chunk, step: u64, options: &AdamWOptions) -> Result<(), UpdateError> {
        let lane = self.next;
        self.next = (lane + 1) % LANES;
        let guard = self.enter(lane)?;
        let send = |host: &Tensor| host.f_to_device_(self.device, Kind::Float, true, true);
        let [param, exp_avg, exp_avg_sq] =
            [send(&chunk.master)?, send(&chunk.exp_avg)?, send(&chunk.exp_avg_sq)?];
        let tensors = AdamWTensors {
            params: std::slice::from_ref(&param),
            grads: std::slice::from_ref(&chunk.gradients),
            exp_avgs: std::slice::from_ref(&exp_avg),
            exp_avg_sqs: std::slice::from_ref(&exp_avg_sq),
        };
        fused_adamw(&tensors, step, options)?;
        chunk.compute.shallow_clone().f_copy_(&param)?;
        drop(guard);
        let state = [(chunk.master, param), (chunk.exp_avg, exp_avg), (chunk.exp_avg_sq, exp_avg_sq)];
        match self.leaving.replace(Leaving { lane, state }) {
            Some(before) => self.bring_back(before),
            None => Ok(()),
        }
    }

    /// Waits until the state of the last chunk is back.
    ///
    /// # Errors
    /// [`UpdateError`] if libtorch refuses.
    pub fn finish(mut self) -> Result<(), UpdateError> {
        self.leaving.take().map_or(Ok(()), |last| self.bring_back(last))
    }

    /// Copies to host memory, which waits for what its stream was told before.
    fn bring_back(&self, chunk: Leaving) -> Result<(), UpdateError> {
        let _guard = self.enter(chunk.lane)?;
        for (mut host, stepped) in chunk.state {
            host.f_copy_(&stepped)?;
        }
        // Master weights that are what is computed with do not leave the device.
        if let Some(stream) = self.streams.get(chunk.lane) {
            stream.synchronize()?;
        }
        Ok(())
    }

    fn enter(&self, lane: usize) -> Result<Option<StreamGuard>, FfiError> {
        match (self.device, self.streams.get(lane)) {
            (Device::Cuda(index), Some(stream)) => Ok(Some(stream.enter(index)?)),
            _ => Ok(None),
        }
    }
}

/// A piece as pieces of at most `size` elements.
pub fn chunks(piece: Piece, size: i64) -> impl Iterator<Item = Piece> {
    (0..piece.length).step_by(size as usize).map(move |start| Piece {
        flat: piece.flat + start,
        own: piece.own + start,
        length: size.min(piece.length - start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_tile_a_piece() {
        let piece = |flat, own, length| Piece { flat, own, length };
        let found: Vec<Piece> = chunks(piece(100, 7, 25), 10).collect();
        assert_eq!(found, [piece(100, 7, 10), piece(110, 17, 10), piece(120, 27, 5)]);
        assert_eq!(chunks(piece(3, 0, 0), 10).count(), 0);
    }
}
