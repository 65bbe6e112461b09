//! The CUDA interface with and without a GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::FfiError;
use g2rl_ffi::cuda::{self, Event, Graph, Stream};
use tch::{Device, Kind, Tensor};

#[test]
fn without_a_gpu_everything_says_so() {
    if cuda::is_available() {
        println!("skipped: a GPU is there");
        return;
    }
    assert_eq!(cuda::device_count(), 0);
    let errors = [
        cuda::memory_stats(0).unwrap_err(),
        cuda::reset_peak(0).unwrap_err(),
        cuda::empty_cache().unwrap_err(),
        cuda::mem_get_info(0).unwrap_err(),
        cuda::synchronize(usize::MAX).unwrap_err(),
        Stream::new(0, false).unwrap_err(),
        Stream::current(0).unwrap_err(),
        Event::new().unwrap_err(),
        Graph::new().unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, FfiError::NoCuda { .. }), "{error}");
    }
}

#[test]
fn memory_is_counted() {
    if !cuda::is_available() {
        println!("skipped: no GPU");
        return;
    }
    cuda::reset_peak(0).unwrap();
    let before = cuda::memory_stats(0).unwrap();
    let tensor = Tensor::zeros([1 << 20], (Kind::Float, Device::Cuda(0)));
    let during = cuda::memory_stats(0).unwrap();
    assert!(during.allocated >= before.allocated + (4 << 20));
    drop(tensor);
    let after = cuda::memory_stats(0).unwrap();
    assert!(after.peak_allocated >= during.allocated && after.reserved >= after.allocated);
    cuda::empty_cache().unwrap();
    let info = cuda::mem_get_info(0).unwrap();
    assert!(info.free > 0 && info.free <= info.total);
}

#[test]
fn a_graph_replays_what_was_captured() {
    if !cuda::is_available() {
        println!("skipped: no GPU");
        return;
    }
    let stream = Stream::new(0, false).unwrap();
    let mut graph = Graph::new().unwrap();
    let x = Tensor::zeros([4], (Kind::Float, Device::Cuda(0)));
    cuda::synchronize(0).unwrap();
    {
        let _guard = stream.enter(0).unwrap();
        graph.capture_begin(None).unwrap();
        let _ = x.shallow_clone().g_add_scalar_(1.0);
        graph.capture_end().unwrap();
        let (start, end) = (Event::new().unwrap(), Event::new().unwrap());
        start.record(&stream).unwrap();
        for _ in 0..3 {
            graph.replay().unwrap();
        }
        end.record(&stream).unwrap();
        end.synchronize().unwrap();
        assert!(end.query().unwrap() && start.elapsed_ms(&end).unwrap() >= 0.0);
    }
    Stream::current(0).unwrap().synchronize().unwrap();
    assert_eq!(Vec::<f32>::try_from(x.to_device(Device::Cpu)).unwrap(), [3.0; 4]);
}
