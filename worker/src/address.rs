//! Under which address other ranks reach this one.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

/// All hosts of a link: reached through a given interface without a route, whatever its subnet is.
const ALL_HOSTS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(224, 0, 0, 1)), 9);

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
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.bind_device(Some(name.as_bytes()))?;
    socket.connect(&ALL_HOSTS.into())?;
    let address = socket.local_addr()?.as_socket_ipv4().map(|address| *address.ip());
    match address.filter(|address| !address.is_unspecified()) {
        Some(address) => Ok(address.to_string()),
        None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "it has no IPv4 address")),
    }
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
