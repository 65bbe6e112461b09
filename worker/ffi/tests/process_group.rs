//! Collectives between two processes: the test runs its own binary again as rank 1.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use g2rl_ffi::FfiError;
use g2rl_ffi::process_group::{Backend, ProcessGroup, ProcessGroupOptions, ReduceOp, TcpStore};
use tch::{Device, Kind, Tensor};

const HOST: &str = "127.0.0.1";
const LONG: Duration = Duration::from_secs(60);
/// Names the script of rank 1 and the store's port; unset in the process that the harness started.
const PEER: &str = "G2RL_FFI_TEST_PEER";

fn form(store: &TcpStore, prefix: &str, rank: u32, timeout: Duration) -> ProcessGroup {
    let options = ProcessGroupOptions {
        prefix: prefix.to_owned(),
        rank,
        world_size: 2,
        timeout,
        bind_host: HOST.to_owned(),
    };
    ProcessGroup::new(Backend::Gloo, store, &options).unwrap()
}

/// Rank 1 of a test; killed when dropped.
struct Peer(Child);

impl Peer {
    fn start(script: &str, store: &TcpStore) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["peer_process", "--exact", "--nocapture"])
            .env(PEER, format!("{script}:{}", store.port()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for a line of the peer that holds `text`.
    fn wait_for(&mut self, text: &str) {
        let lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        let found = lines.map_while(Result::ok).any(|line| line.contains(text));
        assert!(found, "the peer ended without saying {text}");
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    fn succeeds(mut self) {
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test of its own: what rank 1 does. Passes at once in the process of the harness.
#[test]
fn peer_process() {
    let Ok(peer) = std::env::var(PEER) else { return };
    let (script, port) = peer.split_once(':').unwrap();
    let store = TcpStore::connect(HOST, port.parse().unwrap(), LONG).unwrap();
    match script {
        "collectives" => {
            collectives(&form(&store, "first", 1, LONG));
            collectives(&form(&store, "second", 1, LONG));
        }
        "silent" => {
            println!("connected");
            let _group = form(&store, "group", 1, LONG);
            println!("formed");
            // Until this process is killed.
            std::thread::park();
        }
        other => panic!("no script {other}"),
    }
}

fn host() -> TcpStore {
    TcpStore::host(HOST, 0, LONG).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to_kind(Kind::Float)).unwrap()
}

/// What both ranks run; rank r contributes multiples of r + 1.
fn collectives(group: &ProcessGroup) {
    let own = group.rank() as f32 + 1.0;
    for kind in [Kind::Float, Kind::BFloat16] {
        let tensor = || (Tensor::from_slice(&[1.0f32, 2.0, -4.0, 8.0]) * f64::from(own)).to_kind(kind);
        // 1 and 2 times the values: 3 times in all.
        for (op, expected) in [
            (ReduceOp::Sum, [3.0, 6.0, -12.0, 24.0]),
            (ReduceOp::Average, [1.5, 3.0, -6.0, 12.0]),
            (ReduceOp::Max, [2.0, 4.0, -4.0, 16.0]),
        ] {
            let reduced = tensor();
            let work = group.all_reduce(&reduced, op).unwrap();
            work.wait(None).unwrap();
            // A second wait neither blocks nor divides again.
            work.wait(Some(LONG)).unwrap();
            assert!(work.is_completed().unwrap());
            assert_eq!(floats(&reduced), expected, "{kind:?} {op:?}");
        }
        let copied = tensor();
        group.broadcast(&copied, 1).unwrap().wait(None).unwrap();
        assert_eq!(floats(&copied), [2.0, 4.0, -8.0, 16.0]);

        let gathered = group.all_gather(&tensor()).unwrap();
        assert_eq!(
            gathered.iter().map(floats).collect::<Vec<_>>(),
            [[1.0, 2.0, -4.0, 8.0], [2.0, 4.0, -8.0, 16.0]]
        );

        let share = group.reduce_scatter(&tensor(), ReduceOp::Sum).unwrap();
        assert_eq!(floats(&share), [[3.0, 6.0], [-12.0, 24.0]][group.rank() as usize]);
        let share = group.reduce_scatter(&tensor(), ReduceOp::Average).unwrap();
        assert_eq!(floats(&share), [[1.5, 3.0], [-6.0, 12.0]][group.rank() as usize]);
    }
    // Many at once, waited for in another order than they were started.
    let many: Vec<Tensor> = (0..20)
        .map(|i| Tensor::full([1000], f64::from(own) * f64::from(i), (Kind::Float, Device::Cpu)))
        .collect();
    let works: Vec<_> = many.iter().map(|t| group.all_reduce(t, ReduceOp::Sum).unwrap()).collect();
    for work in works.iter().rev() {
        work.wait(None).unwrap();
    }
    for (i, tensor) in many.iter().enumerate() {
        assert_eq!(tensor.min().double_value(&[]), 3.0 * i as f64);
        assert_eq!(tensor.max().double_value(&[]), 3.0 * i as f64);
    }
    group.barrier(LONG).unwrap();
}

#[test]
fn two_processes_agree_also_in_a_second_group() {
    let store = host();
    let peer = Peer::start("collectives", &store);
    collectives(&form(&store, "first", 0, LONG));
    collectives(&form(&store, "second", 0, LONG));
    peer.succeeds();
}

/// A group whose rank 1 never takes part in anything.
fn with_silent_peer(timeout: Duration) -> (TcpStore, Peer, ProcessGroup) {
    let store = host();
    let mut peer = Peer::start("silent", &store);
    // A process takes its time to start, which may be more than a short timeout.
    peer.wait_for("connected");
    let group = form(&store, "group", 0, timeout);
    peer.wait_for("formed");
    (store, peer, group)
}

fn ones() -> Tensor {
    Tensor::ones([1 << 16], (Kind::Float, Device::Cpu))
}

#[test]
fn a_silent_peer_is_a_timeout() {
    let (_store, _peer, group) = with_silent_peer(LONG);
    let tensor = ones();
    let work = group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
    let start = Instant::now();
    let error = work.wait(Some(Duration::from_millis(300))).unwrap_err();
    assert!(matches!(error, FfiError::Timeout { .. }), "{error}");
    assert!((300..2000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert!(!work.is_completed().unwrap());
    assert!(group.barrier(Duration::from_millis(200)).is_err());
    // Dropping the group does not wait for the operation's own minute.
    let start = Instant::now();
    drop(group);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn the_groups_own_deadline_is_kept() {
    let (_store, _peer, group) = with_silent_peer(Duration::from_secs(1));
    let start = Instant::now();
    let error = group.all_gather(&ones()).unwrap_err();
    assert!(matches!(error, FfiError::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn a_killed_peer_is_noticed_at_once() {
    let (_store, mut peer, group) = with_silent_peer(LONG);
    let tensor = ones();
    let work = group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
    peer.kill();
    let start = Instant::now();
    let error = work.wait(None).unwrap_err();
    assert!(matches!(error, FfiError::Failed { .. }) && error.is_retryable(), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn abort_ends_the_waits_of_other_threads() {
    let (_store, _peer, group) = with_silent_peer(LONG);
    let tensor = ones();
    let work = group.all_reduce(&tensor, ReduceOp::Sum).unwrap();
    std::thread::scope(|scope| {
        // Whether the wait has begun when the abort comes makes no difference to its outcome.
        let (sender, begun) = std::sync::mpsc::channel();
        let waiter = scope.spawn(move || {
            sender.send(()).unwrap();
            (work.wait(None), work)
        });
        begun.recv().unwrap();
        let start = Instant::now();
        group.abort().unwrap();
        let (outcome, work) = waiter.join().unwrap();
        assert!(matches!(outcome, Err(FfiError::Aborted { .. })), "{outcome:?}");
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(work.is_completed().unwrap());
    });
    assert!(matches!(group.all_reduce(&tensor, ReduceOp::Sum), Err(FfiError::Aborted { .. })));
    // Twice is as good as once.
    group.abort().unwrap();
}

#[test]
fn a_missing_peer_is_an_error() {
    let store = host();
    let options = ProcessGroupOptions {
        prefix: "alone".to_owned(),
        rank: 0,
        world_size: 2,
        timeout: Duration::from_millis(300),
        bind_host: HOST.to_owned(),
    };
    let start = Instant::now();
    let error = ProcessGroup::new(Backend::Gloo, &store, &options).unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[test]
fn a_missing_store_is_an_error() {
    let port = {
        let listener = std::net::TcpListener::bind((HOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let start = Instant::now();
    let error = TcpStore::connect(HOST, port, Duration::from_millis(500)).unwrap_err();
    assert!(error.to_string().starts_with("process_group::TcpStore::connect"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(TcpStore::host("203.0.113.1", 0, LONG).is_err());
}

#[test]
fn wrong_arguments_are_errors() {
    let store = host();
    let options = |rank| ProcessGroupOptions {
        prefix: format!("one-{rank}"),
        rank,
        world_size: 1,
        timeout: LONG,
        bind_host: HOST.to_owned(),
    };
    assert!(matches!(
        ProcessGroup::new(Backend::Gloo, &store, &options(1)),
        Err(FfiError::InvalidInput { .. })
    ));
    if !g2rl_ffi::cuda::is_available() {
        assert!(matches!(
            ProcessGroup::new(Backend::Nccl, &store, &options(0)),
            Err(FfiError::NoCuda { .. })
        ));
    }
    let group = ProcessGroup::new(Backend::Gloo, &store, &options(0)).unwrap();
    let columns = Tensor::zeros([3, 2], (Kind::Float, Device::Cpu)).transpose(0, 1);
    assert!(matches!(group.all_reduce(&columns, ReduceOp::Sum), Err(FfiError::InvalidInput { .. })));
    assert!(matches!(group.broadcast(&columns, 1), Err(FfiError::InvalidInput { .. })));
}

/// NCCL refuses two ranks on one GPU, so it runs with one rank, and Gloo with two.
#[test]
fn nccl_alone_and_gloo_in_pairs_sum_on_a_gpu() {
    if !g2rl_ffi::cuda::is_available() {
        println!("skipped: no GPU");
        return;
    }
    let ones = |kind| Tensor::ones([1000], (kind, Device::Cuda(0)));
    let sum = |t: &Tensor| t.to_device(Device::Cpu).to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
    let store = host();
    let options = ProcessGroupOptions {
        prefix: "nccl".to_owned(),
        rank: 0,
        world_size: 1,
        timeout: LONG,
        bind_host: HOST.to_owned(),
    };
    let alone = ProcessGroup::new(Backend::Nccl, &store, &options).unwrap();
    for kind in [Kind::Float, Kind::BFloat16] {
        let tensor = ones(kind);
        alone.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait(None).unwrap();
        alone.broadcast(&tensor, 0).unwrap().wait(None).unwrap();
        assert_eq!(sum(&tensor), 1000.0);
    }
    std::thread::scope(|scope| {
        let ranks = [0u32, 1].map(|rank| {
            let port = store.port();
            scope.spawn(move || {
                let store = TcpStore::connect(HOST, port, LONG).unwrap();
                let group = form(&store, "gloo on a GPU", rank, LONG);
                let tensor = ones(Kind::Float) * f64::from(rank + 1);
                group.all_reduce(&tensor, ReduceOp::Sum).unwrap().wait(None).unwrap();
                sum(&tensor)
            })
        });
        for rank in ranks {
            assert_eq!(rank.join().unwrap(), 3000.0);
        }
    });
}
