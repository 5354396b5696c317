//! Which TCP ports listen on every address of this network namespace.
//!
//! NETLINK_SOCK_DIAG (sock_diag(7)) gives listening sockets alone and costs microseconds; where it
//! is denied, the text tables of /proc answer the same at the price of reading every connection. An
//! answer that is cut off, too long or not from the kernel is an error, never a shorter list.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::read_bounded;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const NLMSG_ERROR: u16 = 2;
pub(super) const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
/// NLM_F_DUMP_INTR: the table changed under the dump.
const INTERRUPTED: u16 = 0x10;
/// TCP_LISTEN
const LISTEN: u8 = 10;
pub(super) const HEADER: usize = 16;
const REQUEST: usize = 72;
const SEQUENCE: u32 = 1;
/// The kernel fills at most 32 KiB per answer of a dump.
const ANSWER_MAX: usize = 64 * 1024;
/// Answers of one dump: over a million listening sockets is no machine that we know.
const ANSWERS_MAX: usize = 4096;
/// The text tables, in bytes: some hundred thousand connections.
const TABLE_MAX: u64 = 64 * 1024 * 1024;

/// The ports that listen on `0.0.0.0` or `[::]`, ascending.
///
/// # Errors
/// When neither the kernel's socket nor its text tables could be read in full.
pub(super) fn open_ports() -> io::Result<BTreeSet<u16>> {
    by_netlink().or_else(|_| by_tables(Path::new("/proc/net")))
}

fn by_netlink() -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).map_err(|_| malformed("family"))?;
        // A table that changes while it is read is read again.
        let found = dump(family).or_else(|error| match error.kind() {
            io::ErrorKind::Interrupted => dump(family),
            _ => Err(error),
        });
        ports.extend(found?);
    }
    Ok(ports)
}

/// One dump of the listening TCP sockets of one address family.
fn dump(family: u8) -> io::Result<BTreeSet<u16>> {
    let link = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&link, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    sendto(link.as_raw_fd(), &request(family), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut ports = BTreeSet::new();
    let mut buffer = vec![0; ANSWER_MAX];
    for _ in 0..ANSWERS_MAX {
        let (length, from) = recvfrom::<NetlinkAddr>(link.as_raw_fd(), &mut buffer)?;
        if from.is_none_or(|from| from.pid() != 0) {
            continue; // not the kernel
        }
        let answer = buffer.get(..length).ok_or_else(|| malformed("length"))?;
        if read_answer(answer, &mut ports)? {
            return Ok(ports);
        }
    }
    Err(malformed("an endless answer"))
}

/// `nlmsghdr` and `inet_diag_req_v2`, in the machine's own byte order.
fn request(family: u8) -> Vec<u8> {
    let length = u32::try_from(REQUEST).unwrap_or(0);
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&DUMP.to_ne_bytes());
    bytes.extend_from_slice(&SEQUENCE.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(&[family, 6, 0, 0]); // IPPROTO_TCP, no extensions
    bytes.extend_from_slice(&(1u32 << LISTEN).to_ne_bytes());
    bytes.resize(REQUEST, 0); // any socket
    bytes
}

/// Takes the messages of one answer in; `true` when the dump is over.
fn read_answer(mut answer: &[u8], ports: &mut BTreeSet<u16>) -> io::Result<bool> {
    while !answer.is_empty() {
        let length = u32_at(answer, 0).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length >= HEADER);
        let length = length.ok_or_else(|| malformed("message length"))?;
        let message = answer.get(..length).ok_or_else(|| malformed("a cut message"))?;
        let (kind, flags) = (u16_at(message, 4), u16_at(message, 6));
        if flags.is_none_or(|flags| flags & INTERRUPTED != 0) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match kind {
            Some(NLMSG_DONE) if u32_at(message, HEADER).is_none_or(|code| code == 0) => {
                return Ok(true);
            }
            Some(NLMSG_DONE) => return Err(refusal(message)),
            Some(NLMSG_ERROR) => return Err(refusal(message)),
            Some(SOCK_DIAG_BY_FAMILY) if u32_at(message, 8) == Some(SEQUENCE) => {
                let socket = message.get(HEADER..).unwrap_or_default();
                ports.extend(open_port(socket).ok_or_else(|| malformed("a cut socket"))?);
            }
            _ => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The port of one `inet_diag_msg`, if it listens on every address; `None` if it is cut off.
fn open_port(socket: &[u8]) -> Option<Option<u16>> {
    let (family, state) = (*socket.first()?, *socket.get(1)?);
    let port = u16::from_be_bytes(socket.get(4..6)?.try_into().ok()?);
    let address: [u8; 16] = socket.get(8..24)?.try_into().ok()?;
    let any = match i32::from(family) {
        libc::AF_INET => address.starts_with(&[0; 4]),
        _ => is_any6(address),
    };
    Some((state == LISTEN && any).then_some(port))
}

/// `[::]`, or `0.0.0.0` in its mapped form.
fn is_any6(address: [u8; 16]) -> bool {
    let address = std::net::Ipv6Addr::from(address);
    address.is_unspecified()
        || address.to_ipv4_mapped().is_some_and(|mapped| mapped.is_unspecified())
}

pub(super) fn refusal(message: &[u8]) -> io::Error {
    let code = u32_at(message, HEADER).map(|code| code.cast_signed().saturating_neg());
    code.map_or_else(|| malformed("a cut refusal"), io::Error::from_raw_os_error)
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

pub(super) fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("netlink answered with {what}"))
}

/// The same out of the text tables `tcp` and `tcp6`; a machine without IPv6 has only the first.
fn by_tables(dir: &Path) -> io::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for (table, optional) in [("tcp", false), ("tcp6", true)] {
        let text = match read_bounded(&dir.join(table), TABLE_MAX) {
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let text = String::from_utf8_lossy(&text);
        for line in text.lines().skip(1) {
            ports.extend(table_line(line).ok_or_else(|| malformed("a strange line"))?);
        }
    }
    Ok(ports)
}

/// An IPv6 address out of its four words of hexadecimal.
fn words(text: &str) -> Option<[u8; 16]> {
    let mut address = [0; 16];
    for (at, word) in address.chunks_exact_mut(4).enumerate() {
        let digits = text.get(at * 8..at * 8 + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    Some(address)
}

/// `sl: ADDRESS:PORT remote state …`; the address is words in the machine's byte order.
fn table_line(line: &str) -> Option<Option<u16>> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (address, port) = fields.next()?.split_once(':')?;
    let state = u8::from_str_radix(fields.nth(1)?, 16).ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let any = match address.len() {
        8 => address.bytes().all(|b| b == b'0'),
        32 => is_any6(words(address)?),
        _ => return None,
    };
    Some((state == LISTEN && any).then_some(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn both_ways_see_the_same_open_port_and_neither_a_local_one() {
        let open = TcpListener::bind("0.0.0.0:0").unwrap();
        let local = TcpListener::bind("127.0.0.1:0").unwrap();
        let (open_at, local_at) =
            (open.local_addr().unwrap().port(), local.local_addr().unwrap().port());
        for ports in [by_netlink().unwrap(), by_tables(Path::new("/proc/net")).unwrap()] {
            assert!(ports.contains(&open_at));
            assert!(!ports.contains(&local_at));
        }
        drop(open);
        for ports in [by_netlink().unwrap(), by_tables(Path::new("/proc/net")).unwrap()] {
            assert!(!ports.contains(&open_at));
        }
    }

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&SEQUENCE.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes
    }

    fn listener(family: i32, port: u16, address: [u8; 16]) -> Vec<u8> {
        let mut body = vec![u8::try_from(family).unwrap(), LISTEN, 0, 0];
        body.extend_from_slice(&port.to_be_bytes());
        body.extend_from_slice(&[0; 2]);
        body.extend_from_slice(&address);
        body.resize(72, 0);
        body
    }

    #[test]
    fn answers_are_read_in_full_or_not_at_all() {
        let mut mapped = [0; 16];
        mapped[10..12].fill(0xff);
        let mut local = [0; 16];
        local[15] = 1;
        let mut answer = message(SOCK_DIAG_BY_FAMILY, 2, &listener(libc::AF_INET, 22, [0; 16]));
        answer.extend(message(SOCK_DIAG_BY_FAMILY, 2, &listener(libc::AF_INET6, 443, mapped)));
        answer.extend(message(SOCK_DIAG_BY_FAMILY, 2, &listener(libc::AF_INET6, 80, local)));
        let mut ports = BTreeSet::new();
        assert!(!read_answer(&answer, &mut ports).unwrap());
        assert_eq!(ports, BTreeSet::from([22, 443]));
        assert!(read_answer(&message(NLMSG_DONE, 2, &[0; 4]), &mut ports).unwrap());
        let refused = message(NLMSG_ERROR, 0, &(-libc::EPERM).to_ne_bytes());
        let refused = read_answer(&refused, &mut ports).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let failed = message(NLMSG_DONE, 2, &(-libc::ENOMEM).to_ne_bytes());
        assert!(read_answer(&failed, &mut ports).is_err());
        let changed = read_answer(&message(SOCK_DIAG_BY_FAMILY, INTERRUPTED, &[]), &mut ports);
        assert_eq!(changed.unwrap_err().kind(), io::ErrorKind::Interrupted);
        for cut in 1..answer.len() {
            let whole = [88, 176].contains(&cut);
            assert_eq!(read_answer(&answer[..cut], &mut ports).is_ok(), whole, "{cut}");
        }
    }

    #[test]
    fn tables_are_read_by_line() {
        let row =
            |address: &str, state: &str| format!("   0: {address}:0016 00000000:0000 {state} 0:0");
        assert_eq!(table_line(&row("00000000", "0A")), Some(Some(22)));
        assert_eq!(table_line(&row("00000000", "01")), Some(None));
        assert_eq!(table_line(&row("0100007F", "0A")), Some(None));
        assert_eq!(table_line(&row(&"0".repeat(32), "0A")), Some(Some(22)));
        for bad in ["", "x", "0: 00000000", "0: 0000:0016 0:0 0A", "0: 00000000:zz 0:0 0A"] {
            assert_eq!(table_line(bad), None, "{bad:?}");
        }
    }
}
