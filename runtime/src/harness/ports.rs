//! Free ports on loopback.
//!
//! Ports are taken from below the range the system gives to outgoing connections: otherwise a node that
//! is down could find its port taken by a connection, or a peer that redials it could reach itself.

use std::net::{Ipv4Addr, TcpListener};

use rand::Rng;

use super::HarnessError;

/// Where random ports are looked for.
const RANDOM_PORTS: std::ops::Range<u16> = 18_000..32_000;

/// As many different free ports, from a random start on.
pub(crate) fn free_ports(count: usize) -> Result<Vec<u16>, HarnessError> {
    let start = rand::rng().random_range(RANDOM_PORTS);
    // Listeners are held until all ports are found, so that no port is found twice.
    let held: Vec<_> =
        (start..RANDOM_PORTS.end).chain(RANDOM_PORTS.start..start).filter_map(listen).take(count).collect();
    let ports: Vec<_> = held.iter().filter_map(|listener| Some(listener.local_addr().ok()?.port())).collect();
    if ports.len() == count { Ok(ports) } else { Err(HarnessError::NoPort) }
}

/// As many free ports from `first` on, in order.
pub(crate) fn free_from(first: u16, count: usize) -> Result<Vec<u16>, HarnessError> {
    let ports: Vec<_> = (first..=u16::MAX).filter(|&port| listen(port).is_some()).take(count).collect();
    if ports.len() == count { Ok(ports) } else { Err(HarnessError::NoPort) }
}

/// Whether a port can be listened on now.
fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(!free_from(port, 1).unwrap_or_default().contains(&port));
        let mut ports = free_ports(6).unwrap();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    }
}
