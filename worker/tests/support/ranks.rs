//! Several ranks as threads of one process, over Gloo.

use std::time::Duration;

use g2rl_ffi::process_group::{Backend, ProcessGroup, ProcessGroupOptions, TcpStore};

const TIMEOUT: Duration = Duration::from_secs(60);

/// What each rank returns, in order.
pub(crate) fn over_gloo<T: Send>(ranks: u32, body: impl Fn(u32, &ProcessGroup) -> T + Sync) -> Vec<T> {
    let store = TcpStore::host("127.0.0.1", 0, TIMEOUT).unwrap();
    let (port, body) = (store.port(), &body);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                scope.spawn(move || {
                    let store = TcpStore::connect("127.0.0.1", port, TIMEOUT).unwrap();
                    let options = ProcessGroupOptions {
                        prefix: "test".into(),
                        rank,
                        world_size: ranks,
                        timeout: TIMEOUT,
                        bind_host: "127.0.0.1".into(),
                    };
                    body(rank, &ProcessGroup::new(Backend::Gloo, &store, &options).unwrap())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
