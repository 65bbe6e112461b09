//! What is on its way: an ordered link for each stream of each worker, as HTTP/2 gives one, and no order at
//! all for the verification pool.
//!
//! Invariants: like the shell, the machine hears a worker only on the stream whose hello it accepted last. What a
//! stream had not taken when it broke goes over the worker's next one, after its hello.

use std::collections::BTreeMap;

use g2rl_common::ids::WorkerId;

use crate::state::{Effect, Event};

/// Where an event comes from: events of one source arrive in the order they were sent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Worker(WorkerId),
    /// The verification pool: no order at all.
    Pool,
}

/// What is carried.
#[derive(Debug, Clone)]
pub(crate) enum Parcel {
    /// To the machine.
    Event {
        event: Event,
        /// What it says is not true.
        lie: bool,
    },
    /// From the machine to a worker.
    Command(Effect),
    /// A worker's next sign of life is due.
    Beat,
}

#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Who sent it or will receive it.
    pub(crate) source: Source,
    /// Of this worker.
    pub(crate) stream: u64,
    pub(crate) parcel: Parcel,
}

/// Events that a broken stream has not delivered, in order, and whether each is a lie.
pub(crate) type Undelivered = Vec<(Event, bool)>;

/// A worker's end of its link.
#[derive(Debug, Clone, Default)]
struct Link {
    /// The stream it opened last.
    stream: u64,
    last_event: u64,
    last_command: u64,
    /// On their way to it.
    commands: usize,
}

/// What a worker's engine said; hellos and ends belong to their stream.
fn said(parcel: Parcel) -> Option<(Event, bool)> {
    match parcel {
        Parcel::Event { event: Event::Connected { .. } | Event::Disconnected { .. }, .. } => None,
        Parcel::Event { event, lie } => Some((event, lie)),
        Parcel::Command(_) | Parcel::Beat => None,
    }
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    queue: BTreeMap<(u64, u64), Sent>,
    sequence: u64,
    links: BTreeMap<WorkerId, Link>,
    /// The streams that the shell listens to.
    accepted: BTreeMap<WorkerId, u64>,
    knocking: u64,
}

impl Network {
    fn post(&mut self, due: u64, sent: Sent) {
        self.sequence += 1;
        self.queue.insert((due, self.sequence), sent);
    }

    /// Sends an event; over its link it arrives after everything that was sent before.
    pub(crate) fn send(&mut self, source: Source, parcel: Parcel, due: u64, in_order: bool) {
        let (mut due, mut stream) = (due, 0);
        if let Source::Worker(worker) = &source {
            let link = self.links.entry(worker.clone()).or_default();
            if matches!(&parcel, Parcel::Event { event: Event::Connected { .. }, .. }) {
                link.stream += 1;
            }
            stream = link.stream;
            if in_order {
                due = due.max(link.last_event);
                link.last_event = due;
            }
        }
        self.post(due, Sent { source, stream, parcel });
    }

    /// A command waits until its worker does something again.
    pub(crate) fn postpone(&mut self, worker: &WorkerId, command: Effect, until: u64) {
        self.arrived(worker);
        self.command(worker, command, until);
    }

    /// Sends a command, after those that were sent before.
    pub(crate) fn command(&mut self, worker: &WorkerId, command: Effect, due: u64) {
        let link = self.links.entry(worker.clone()).or_default();
        link.last_command = link.last_command.max(due);
        link.commands += 1;
        let (due, stream) = (link.last_command, link.stream);
        let source = Source::Worker(worker.clone());
        self.post(due, Sent { source, stream, parcel: Parcel::Command(command) });
    }

    /// The stream that the shell listens to is the worker's last.
    pub(crate) fn reaches(&self, worker: &WorkerId) -> bool {
        self.links.get(worker).is_none_or(|link| self.is_accepted(worker, link.stream))
    }

    /// A command reached its worker.
    pub(crate) fn arrived(&mut self, worker: &WorkerId) {
        self.links.get_mut(worker).expect("it was sent over a link").commands -= 1;
    }

    /// Commands on their way to a worker, of its last stream.
    pub(crate) fn commands_to(&self, worker: &WorkerId) -> usize {
        self.links.get(worker).map_or(0, |link| link.commands)
    }

    /// A stream breaks: of its events only those that are due until then arrive, and no command.
    pub(crate) fn break_stream(&mut self, worker: &WorkerId, until: u64) -> Undelivered {
        let source = Source::Worker(worker.clone());
        let broken = self.queue.extract_if(.., |(due, _), sent| {
            sent.source == source && (*due > until || !matches!(sent.parcel, Parcel::Event { .. }))
        });
        let undelivered = broken.filter_map(|(_, sent)| said(sent.parcel)).collect();
        let link = self.links.entry(worker.clone()).or_default();
        (link.last_event, link.commands) = (until, 0);
        undelivered
    }

    /// The coordinator's process is gone, and with it every stream and all that its pool does.
    pub(crate) fn break_all(&mut self) -> BTreeMap<WorkerId, Undelivered> {
        let mut undelivered: BTreeMap<WorkerId, Undelivered> = BTreeMap::new();
        for (_, sent) in std::mem::take(&mut self.queue) {
            if let (Source::Worker(worker), Some(event)) = (sent.source, said(sent.parcel)) {
                undelivered.entry(worker).or_default().push(event);
            }
        }
        self.accepted.clear();
        for link in self.links.values_mut() {
            (link.last_event, link.last_command, link.commands) = (0, 0, 0);
        }
        undelivered
    }

    pub(crate) fn next_due(&self) -> Option<u64> {
        self.queue.keys().next().map(|(due, _)| *due)
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, Sent)> {
        self.queue.pop_first().map(|((due, _), sent)| (due, sent))
    }

    /// A message on this stream is heard.
    pub(crate) fn is_accepted(&self, worker: &WorkerId, stream: u64) -> bool {
        self.accepted.get(worker) == Some(&stream)
    }

    /// This is the worker's last stream.
    pub(crate) fn is_open(&self, worker: &WorkerId, stream: u64) -> bool {
        self.links.get(worker).is_some_and(|link| link.stream == stream)
    }

    /// A stream says hello; the one before is heard no more.
    pub(crate) fn knock(&mut self, worker: &WorkerId, stream: u64) {
        self.knocking = stream;
        self.accepted.remove(worker);
    }

    /// The stream that knocks is welcome.
    pub(crate) fn accept(&mut self, worker: &WorkerId) {
        self.accepted.insert(worker.clone(), self.knocking);
    }

    pub(crate) fn close(&mut self, worker: &WorkerId) {
        self.accepted.remove(worker);
    }

    pub(crate) fn accepted(&self) -> impl Iterator<Item = &WorkerId> {
        self.accepted.keys()
    }
}
