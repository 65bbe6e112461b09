//! The CUDA interface with and without a GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::FfiError;
use g2rl_ffi::cuda::{self, Event, Graph, Stream};
use g2rl_ffi::flash::{self, FlashAttention, flash_attention};
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

/// Softmax attention of one row over some tokens in f64, and the logarithm of its sum for each head.
fn reference(query: &Tensor, keys: &Tensor, values: &Tensor, scale: f64) -> (Tensor, Tensor) {
    let group = query.size()[0] / keys.size()[1];
    let per_head = |t: &Tensor| t.to_kind(Kind::Double).repeat_interleave_self_int(group, 1, None);
    let (keys, values) = (per_head(keys).permute([1, 2, 0]), per_head(values).transpose(0, 1));
    let scores = query.to_kind(Kind::Double).unsqueeze(1).bmm(&keys) * scale;
    let sums = scores.logsumexp([-1i64].as_slice(), false).squeeze_dim(1);
    (scores.softmax(-1, Kind::Double).bmm(&values).squeeze_dim(1), sums)
}

#[test]
fn flash_attention_reads_extents_in_any_order() {
    let (heads, kv_heads, d, tokens) = (8, 2, 64, 700);
    let (starts, lengths) = ([300i32, 5, 0, 40, 0], [400i32, 1, 0, 130]);
    let device = Device::cuda_if_available();
    let random = |size: [i64; 3]| Tensor::randn(size, (Kind::BFloat16, device));
    tch::manual_seed(3);
    let (query, keys) = (random([4, heads, d]), random([tokens, kv_heads, d]));
    let values = random([tokens, kv_heads, d]);
    let place = |values: &[i32]| Tensor::from_slice(values).to_device(device);
    let inputs = FlashAttention {
        query: &query,
        keys: &keys,
        values: &values,
        query_starts: &place(&[0, 1, 2, 3, 4]),
        starts: &place(&starts),
        lengths: &place(&lengths),
        longest: 512,
        scale: 0.125,
    };
    let result = flash_attention(&inputs);
    if !cuda::is_available() {
        let error = result.unwrap_err();
        assert!(matches!(error, FfiError::NoCuda { .. }), "{error}");
        return;
    }
    let (output, normalizers) = result.unwrap();
    assert_eq!((output.size(), normalizers.size()), (vec![4, heads, d], vec![heads, 4]));
    for (row, length) in lengths.iter().enumerate() {
        let row = row as i64;
        let (found, sums) = (output.get(row).to_kind(Kind::Double), normalizers.select(1, row));
        if *length == 0 {
            assert!(found.abs().max().double_value(&[]) == 0.0);
            assert!(sums.isposinf().all().int64_value(&[]) == 1);
            continue;
        }
        let extent = |t: &Tensor| t.narrow(0, starts[row as usize].into(), (*length).into());
        let (expected, logsumexp) = reference(&query.get(row), &extent(&keys), &extent(&values), 0.125);
        assert!((found - expected).abs().max().double_value(&[]) < 0.02);
        assert!((sums - logsumexp).abs().max().double_value(&[]) < 1e-3);
    }
}

#[test]
fn flash_attention_is_probed_and_checked() {
    let shape = (8, 2, 64);
    let refused = flash::probe(Device::Cpu, Kind::BFloat16, shape).unwrap_err();
    assert!(matches!(refused, FfiError::NoCuda { .. }), "{refused}");
    let refused = flash::probe(Device::Cuda(0), Kind::BFloat16, (8, 2, 60)).unwrap_err();
    assert!(matches!(refused, FfiError::InvalidInput { .. }), "{refused}");
    if !cuda::is_available() {
        println!("skipped: no GPU");
        return;
    }
    flash::probe(Device::Cuda(0), Kind::BFloat16, shape).unwrap();
    assert!(flash::probe(Device::Cuda(0), Kind::Float, shape).is_err());
}
