//! Residual sums times the head: against f64, and bit for bit whatever the batch and the threads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::FfiError;
use g2rl_ffi::head::project_residuals;
use tch::{Device, Kind, Tensor};

#[test]
fn a_row_is_its_sum_whatever_the_batch_and_the_threads() {
    tch::manual_seed(3);
    // Neither size is a multiple of a tile's.
    let sums = Tensor::randn([40, 1030], (Kind::Float, Device::Cpu));
    for kind in [Kind::Float, Kind::BFloat16] {
        let head = Tensor::randn([1030, 75], (Kind::Float, Device::Cpu)).to_kind(kind);
        let slots: Vec<i64> = (0..40).rev().collect();
        let all = project_residuals(&sums, &slots, &head).unwrap();
        let exact = sums.to_kind(Kind::Double).matmul(&head.to_kind(Kind::Double)).flip([0]);
        // A sum of 1030 products of normal numbers is about 32 in size.
        assert!((&all - exact).abs().max().double_value(&[]) < 1e-4);
        // 17 rows are tiles of twelve, four and one.
        for (from, count) in [(0, 1), (5, 2), (3, 12), (20, 17)] {
            let some = project_residuals(&sums, &slots[from..from + count], &head).unwrap();
            assert_eq!(some, all.narrow(0, from as i64, count as i64));
        }
        let threads = tch::get_num_threads();
        tch::set_num_threads(1);
        assert_eq!(project_residuals(&sums, &slots, &head).unwrap(), all);
        tch::set_num_threads(threads);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (sums, head) = ([2, 8], [8, 4]);
    let of = |size: [i64; 2]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    let refused = |sums: &Tensor, slots: &[i64], head: &Tensor| {
        matches!(project_residuals(sums, slots, head), Err(FfiError::InvalidInput { .. }))
    };
    assert!(!refused(&of(sums), &[1], &of(head)));
    assert!(refused(&of(sums), &[2], &of(head)));
    assert!(refused(&of(sums), &[-1], &of(head)));
    assert!(refused(&of([2, 7]), &[1], &of(head)));
    assert!(refused(&of(sums).to_kind(Kind::Double), &[1], &of(head)));
    assert!(refused(&of(sums), &[1], &of([4, 8]).tr()));
}
