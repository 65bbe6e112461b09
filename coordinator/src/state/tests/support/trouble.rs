//! What goes wrong with the world: processes that die or do nothing, streams that break.

use g2rl_common::ids::WorkerId;

use super::Sim;
use super::network::{Parcel, Source, Undelivered};
use super::worker::{self, Behavior, FakeWorker, Said};
use crate::state::Event;

/// The longest time in which a worker opens another stream once its stream is ended.
const RECONNECT_MS: u64 = 500;

impl Sim {
    /// Something goes wrong.
    pub(crate) fn trouble(&mut self, text: impl FnOnce() -> String) {
        self.trace.note(self.now, text);
        self.progress.trouble(self.now);
    }

    fn break_stream(&mut self, worker: &WorkerId) -> Undelivered {
        let until = self.now + self.random.below(self.weather.max_delay_ms + 1);
        self.network.break_stream(worker, until)
    }

    /// A worker's process dies. That is noticed by its stream's end, or only by its silence.
    pub(crate) fn kill(&mut self, name: &str, noticed: bool) {
        self.trouble(|| format!("{name} is killed"));
        let worker = WorkerId::from(name);
        self.break_stream(&worker);
        if let Some(fake) = self.workers.get_mut(&worker) {
            fake.stop();
        }
        if noticed && !self.cut_off.contains(&worker) {
            let event = Event::Disconnected { worker: worker.clone(), reason: "killed".into() };
            self.say(&worker, Said { event, lie: false });
        }
    }

    /// A worker's process dies, and another takes its name, without its policy.
    pub(crate) fn respawn(&mut self, name: &str, noticed: bool, delay_ms: u64) {
        self.kill(name, noticed);
        let behavior =
            self.workers.remove(&WorkerId::from(name)).map(|fake| fake.behavior).unwrap_or_default();
        self.connect(name, delay_ms, Behavior { fault: None, ..behavior });
    }

    /// A worker's process does nothing for a while, not even beat.
    pub(crate) fn hang(&mut self, name: &str, duration_ms: u64) {
        self.trouble(|| format!("{name} hangs for {duration_ms} ms"));
        if let Some(fake) = self.workers.get_mut(&WorkerId::from(name)) {
            fake.hangs_until = self.now + duration_ms;
        }
    }

    /// A worker's stream breaks; it connects again after `delay_ms`, before or after that is noticed.
    pub(crate) fn cut(&mut self, name: &str, noticed: bool, delay_ms: u64) {
        self.trouble(|| format!("{name} is cut off for {delay_ms} ms"));
        let worker = WorkerId::from(name);
        let undelivered = self.break_stream(&worker);
        if noticed {
            let event = Event::Disconnected { worker: worker.clone(), reason: "connection reset".into() };
            self.send_at(Source::Worker(worker.clone()), event, delay_ms.min(50));
        }
        self.reconnect(&worker, delay_ms, undelivered);
    }

    /// The machine ended a worker's stream.
    pub(super) fn refused(&mut self, worker: &WorkerId, may_return: bool) {
        self.network.close(worker);
        let Some(fake) = self.workers.get_mut(worker) else { return };
        // It was too slow; whether another that is lost had to be is for the deadlines to say.
        if fake.behavior.slow_ms > 0 {
            self.progress.trouble(self.now);
        }
        if self.cut_off.contains(worker) {
            return;
        }
        if may_return && fake.lives() {
            let undelivered = self.network.break_stream(worker, self.now);
            let delay_ms = 1 + self.random.below(RECONNECT_MS);
            self.reconnect(worker, delay_ms, undelivered);
        } else {
            fake.stop();
        }
    }

    /// A worker opens another stream. What the broken one had taken is lost; the rest follows the hello.
    pub(super) fn reconnect(&mut self, worker: &WorkerId, delay_ms: u64, undelivered: Undelivered) {
        self.cut_off.insert(worker.clone());
        let fake = &self.workers[worker];
        let held = fake.loaded.then(|| ("run".into(), fake.version));
        let due = self.now.max(fake.hangs_until) + delay_ms;
        let hello = g2rl_proto::Hello { held, ..worker::hello(&worker.0) };
        let source = Source::Worker(worker.clone());
        let event = Event::Connected { hello };
        self.network.send(source.clone(), Parcel::Event { event, lie: false }, due, true);
        let taken = self.random.below(undelivered.len() as u64 + 1) as usize;
        for (event, lie) in undelivered.into_iter().skip(taken) {
            self.network.send(source.clone(), Parcel::Event { event, lie }, due, true);
        }
    }

    /// A collective fails on a worker because of a peer.
    pub(crate) fn collective_fails(&mut self, name: &str) {
        let worker = WorkerId::from(name);
        if let Some(event) = self.workers.get_mut(&worker).and_then(FakeWorker::peer_lost) {
            self.trouble(|| format!("a collective fails on {name}"));
            self.say(&worker, Said { event, lie: false });
        }
    }
}
