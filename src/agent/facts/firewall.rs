//! Whether the nft ruleset of this network namespace holds any rule, by NETLINK_NETFILTER.
//!
//! One rule is enough for the answer, so that a host with a hundred thousand of them costs one answer
//! of the kernel. What the rules mean nobody can say from here: the fact has the agent's rank. Asked
//! only where the kernel's part for it is there already: asking must not load it.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::listeners::{HEADER, NLMSG_DONE, NLMSG_ERROR, malformed, refusal, u16_at, u32_at};

/// NFNL_SUBSYS_NFTABLES in the upper byte, and in the lower one …
const NFTABLES: u16 = 10 << 8;
/// … NFT_MSG_NEWRULE, NFT_MSG_GETRULE.
const NEW_RULE: u16 = NFTABLES | 6;
const GET_RULE: u16 = NFTABLES | 7;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
const REQUEST: usize = 20;
const SEQUENCE: u32 = 1;
const ANSWER_MAX: usize = 64 * 1024;
/// Answers without a rule and without an end: there are none of honest kernels.
const ANSWERS_MAX: usize = 16;

/// Whether there is a rule.
///
/// # Errors
/// When the kernel does not say; reading rules takes CAP_NET_ADMIN.
pub(super) fn has_rules() -> io::Result<bool> {
    let link = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&link, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    sendto(link.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut buffer = vec![0; ANSWER_MAX];
    for _ in 0..ANSWERS_MAX {
        let (length, from) = recvfrom::<NetlinkAddr>(link.as_raw_fd(), &mut buffer)?;
        if from.is_none_or(|from| from.pid() != 0) {
            continue; // not the kernel
        }
        let answer = buffer.get(..length).ok_or_else(|| malformed("length"))?;
        if let Some(found) = read_answer(answer)? {
            return Ok(found);
        }
    }
    Err(malformed("an endless answer"))
}

/// `nlmsghdr` and `nfgenmsg` of every family.
fn request() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend_from_slice(&u32::try_from(REQUEST).unwrap_or(0).to_ne_bytes());
    bytes.extend_from_slice(&GET_RULE.to_ne_bytes());
    bytes.extend_from_slice(&DUMP.to_ne_bytes());
    bytes.extend_from_slice(&SEQUENCE.to_ne_bytes());
    bytes.resize(REQUEST, 0);
    bytes
}

/// What one answer says: a rule, the end without one, or neither yet.
fn read_answer(mut answer: &[u8]) -> io::Result<Option<bool>> {
    while !answer.is_empty() {
        let length = u32_at(answer, 0).and_then(|length| usize::try_from(length).ok());
        let length = length.filter(|length| *length >= HEADER);
        let length = length.ok_or_else(|| malformed("message length"))?;
        let message = answer.get(..length).ok_or_else(|| malformed("a cut message"))?;
        match u16_at(message, 4) {
            Some(NEW_RULE) if u32_at(message, 8) == Some(SEQUENCE) => return Ok(Some(true)),
            Some(NLMSG_DONE) if u32_at(message, HEADER).is_none_or(|code| code == 0) => {
                return Ok(Some(false));
            }
            Some(NLMSG_DONE | NLMSG_ERROR) => return Err(refusal(message)),
            _ => {}
        }
        answer = answer.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&[2, 0]);
        bytes.extend_from_slice(&SEQUENCE.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn one_rule_is_enough_and_a_refusal_is_no_answer() {
        assert_eq!(read_answer(&message(NEW_RULE, &[0; 8])).unwrap(), Some(true));
        assert_eq!(read_answer(&message(NLMSG_DONE, &[0; 4])).unwrap(), Some(false));
        assert_eq!(read_answer(&message(NFTABLES, &[0; 8])).unwrap(), None);
        let refused = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        let refused = read_answer(&refused).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let whole = message(NEW_RULE, &[0; 8]);
        for cut in 1..whole.len() {
            assert!(read_answer(&whole[..cut]).is_err(), "{cut}");
        }
        let mut lying = whole.clone();
        lying[0] = 4;
        assert!(read_answer(&lying).is_err(), "shorter than its own header");
    }

    #[test]
    fn the_kernel_answers_or_says_why_not() {
        match has_rules() {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}"),
        }
    }
}
