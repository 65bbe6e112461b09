//! How often: new connections of an address, and lines in the log.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Addresses that are remembered; beyond it, those that have been quiet longest are forgotten.
const ADDRESSES: usize = 4096;

/// A line of each kind goes into the log at most so often.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Connections of each address: how many are still without a hello, and how many may come now.
#[derive(Debug)]
pub(super) struct AddressLimits {
    per_minute: f64,
    pending: u32,
    addresses: BTreeMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Address {
    /// New connections that it may make now.
    tokens: f64,
    counted: Instant,
    pending: u32,
}

impl AddressLimits {
    /// `per_minute` new connections, and `pending` at once, of one address.
    pub(super) fn new(per_minute: u32, pending: u32) -> Self {
        Self { per_minute: per_minute.into(), pending: pending.max(1), addresses: BTreeMap::new() }
    }

    /// Whether the address may have another connection; one that may is pending until [`Self::settle`].
    pub(super) fn admit(&mut self, address: IpAddr, now: Instant) -> bool {
        self.forget(now);
        let (most, pending) = (self.per_minute, self.pending);
        let full = Address { tokens: most, counted: now, pending: 0 };
        let entry = self.addresses.entry(key(address)).or_insert(full);
        let minutes = now.saturating_duration_since(entry.counted).as_secs_f64() / 60.0;
        entry.tokens = (entry.tokens + most * minutes).min(most);
        entry.counted = now;
        if entry.tokens < 1.0 || entry.pending >= pending {
            return false;
        }
        entry.tokens -= 1.0;
        entry.pending += 1;
        true
    }

    /// A pending connection has said hello, or is gone.
    pub(super) fn settle(&mut self, address: IpAddr) {
        if let Some(entry) = self.addresses.get_mut(&key(address)) {
            entry.pending = entry.pending.saturating_sub(1);
        }
    }

    /// Makes room: addresses that may do everything again need not be remembered.
    fn forget(&mut self, now: Instant) {
        if self.addresses.len() < ADDRESSES {
            return;
        }
        self.addresses.retain(|_, entry| {
            entry.pending > 0 || now.saturating_duration_since(entry.counted) < Duration::from_secs(60)
        });
        while self.addresses.len() >= ADDRESSES {
            let idle = self.addresses.iter().filter(|(_, entry)| entry.pending == 0);
            let Some(oldest) = idle.min_by_key(|(_, entry)| entry.counted).map(|(address, _)| *address)
            else {
                // As many connections are open, which has a limit of its own.
                return;
            };
            self.addresses.remove(&oldest);
        }
    }
}

/// Whoever has one IPv6 address has the 2^64 that share its first half.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        address => address,
    }
}

/// Lets a line through from time to time.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// The number of times since the last line, this one included, if it is time for another.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, times) = &mut *state;
        *times += 1;
        if last.is_some_and(|last| now.saturating_duration_since(last) < LOG_INTERVAL) {
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(times))
    }
}

/// Files that this process may have open; journal, data and checkpoints need theirs beside the connections.
pub(super) fn open_files() -> u32 {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    // "unlimited" is no number.
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    #[test]
    fn an_address_is_slowed_down_and_others_are_not() {
        let mut limits = AddressLimits::new(60, 1000);
        let start = Instant::now();
        let admitted = (0..100).filter(|_| limits.admit(A, start)).count();
        assert_eq!(admitted, 60);
        assert!(limits.admit(B, start));
        // One a second.
        assert!(!limits.admit(A, start + Duration::from_millis(900)));
        assert!(limits.admit(A, start + Duration::from_millis(1100)));
        assert!(!limits.admit(A, start + Duration::from_millis(1200)));
    }

    #[test]
    fn those_without_a_hello_are_few() {
        let mut limits = AddressLimits::new(1000, 2);
        let now = Instant::now();
        assert!(limits.admit(A, now) && limits.admit(A, now));
        assert!(!limits.admit(A, now));
        limits.settle(A);
        assert!(limits.admit(A, now));
    }

    #[test]
    fn memory_is_bounded_and_neighbours_in_ipv6_are_one() {
        let mut limits = AddressLimits::new(2, 10);
        let now = Instant::now();
        for number in 0..3 * ADDRESSES as u32 {
            let address = IpAddr::V4(number.into());
            assert!(limits.admit(address, now));
            limits.settle(address);
            assert!(limits.addresses.len() <= ADDRESSES);
        }
        let six = |last: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last));
        assert!(limits.admit(six(1), now) && limits.admit(six(2), now));
        assert!(!limits.admit(six(3), now));
    }

    #[test]
    fn a_flood_is_one_line_with_a_number() {
        let throttle = Throttle::default();
        let start = Instant::now();
        assert_eq!(throttle.pass(start), Some(1));
        assert!((0..50).all(|_| throttle.pass(start + Duration::from_secs(1)).is_none()));
        assert_eq!(throttle.pass(start + LOG_INTERVAL), Some(51));
    }

    #[test]
    fn the_systems_limit_is_known() {
        assert!(open_files() >= 64, "{}", open_files());
    }
}
