//! Under which address other ranks reach this one.

use std::io;
use std::net::{IpAddr, UdpSocket};

/// The address this machine uses towards the coordinator: connecting a datagram socket sends
/// nothing, but makes the system choose one.
#[must_use]
pub fn towards(coordinator: &str) -> String {
    let target = coordinator.split_once("://").map_or(coordinator, |(_, rest)| rest).trim_end_matches('/');
    UdpSocket::bind("0.0.0.0:0")
        .and_then(|socket| {
            socket.connect(target)?;
            Ok(socket.local_addr()?.ip().to_string())
        })
        .unwrap_or_else(|_| "127.0.0.1".to_owned())
}

/// The first IPv4 address of a network interface.
///
/// # Errors
/// If there is no such interface, or it has none.
pub fn of_interface(name: &str) -> io::Result<String> {
    let found = if_addrs::get_if_addrs()?.into_iter().filter(|interface| interface.name == name).find_map(
        |interface| match interface.ip() {
            IpAddr::V4(address) => Some(address.to_string()),
            IpAddr::V6(_) => None,
        },
    );
    found.ok_or_else(|| io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no IPv4 address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_that_of_the_way_to_the_coordinator_or_of_the_interface() {
        assert_eq!(towards("http://127.0.0.1:7700/"), "127.0.0.1");
        assert_eq!(towards("not an address"), "127.0.0.1");
        assert_eq!(of_interface("lo").unwrap(), "127.0.0.1");
        assert!(of_interface("no-such-interface").is_err());
    }
}
