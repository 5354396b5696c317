//! The UDP sockets of one port: one for each thread that serves it. The kernel gives all datagrams
//! of one client address to the same socket.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Binds `count` sockets (at least one) to an address; of port 0, all to the same free port.
///
/// # Errors
/// When the address is taken, not ours, or not allowed.
pub fn sockets(address: SocketAddr, count: usize) -> io::Result<Vec<UdpSocket>> {
    // The first is bound alone: it is refused where anybody has the port, also another process of the
    // same user that would share it. Only then, and without letting go of it, it is shared.
    let first = UdpSocket::bind(address)?;
    if count <= 1 {
        return Ok(vec![first]);
    }
    let address = first.local_addr()?;
    SockRef::from(&first).set_reuse_port(true)?;
    let others = (1..count).map(|_| sharing(address));
    std::iter::once(Ok(first)).chain(others).collect()
}

fn sharing(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn all_share_one_port_and_nobody_else_gets_it() {
        let some = sockets(loopback(0), 3).unwrap();
        let address = some[0].local_addr().unwrap();
        assert!(some.iter().all(|socket| socket.local_addr().unwrap() == address));
        assert_eq!(some.len(), 3);
        for count in [1, 3] {
            let error = sockets(address, count).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{count}");
        }
        drop(some);
        assert_eq!(sockets(address, 1).unwrap().len(), 1);
    }

    #[test]
    fn of_many_who_want_a_port_at_once_one_gets_it() {
        let address = sockets(loopback(0), 1).unwrap()[0].local_addr().unwrap();
        for _ in 0..200 {
            let all = std::thread::scope(|scope| {
                let tries: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| sockets(address, 2).ok())).collect();
                tries.into_iter().filter_map(|it| it.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(all.len(), 1, "the port is shared by strangers");
        }
    }

    #[test]
    fn one_client_comes_to_one_socket() {
        let some = sockets(loopback(0), 4).unwrap();
        let address = some[0].local_addr().unwrap();
        for socket in &some {
            socket.set_nonblocking(true).unwrap();
        }
        let client = UdpSocket::bind(loopback(0)).unwrap();
        for _ in 0..8 {
            client.send_to(b"x", address).unwrap();
        }
        let heard =
            |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count();
        let mut counts: Vec<usize> = some.iter().map(heard).collect();
        counts.sort_unstable();
        assert_eq!(counts, [0, 0, 0, 8]);
    }
}
