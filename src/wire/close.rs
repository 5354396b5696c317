//! Why a connection was closed: a closed set of QUIC application error codes.

use quinn::VarInt;

/// What the broker says when it closes a connection (docs/WIRE.md). Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The broker is stopping; connect again, perhaps to another one.
    Draining,
    /// The device no longer meets a profile under which something was released.
    Posture,
    /// The identity, its entry or its device was revoked.
    Revoked,
    /// The certificate has ended.
    Expired,
    /// Too many connections, of this identity or of all.
    TooMany,
    /// The client does not speak this protocol.
    Protocol,
}

impl CloseCode {
    /// All of them, in order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Draining,
        Self::Posture,
        Self::Revoked,
        Self::Expired,
        Self::TooMany,
        Self::Protocol,
    ];

    /// The number on the wire.
    pub fn varint(self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Draining => 0x100,
            Self::Posture => 0x101,
            Self::Revoked => 0x102,
            Self::Expired => 0x103,
            Self::TooMany => 0x104,
            Self::Protocol => 0x105,
        })
    }

    /// The word beside it; also the reason text of the closing frame.
    pub fn word(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Posture => "posture",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::TooMany => "too_many",
            Self::Protocol => "protocol",
        }
    }

    /// The code of this number.
    pub fn parse(code: VarInt) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.varint() == code)
    }

    /// What the holder of the connection can do.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Draining => "the broker is stopping: connect again",
            Self::Posture => "the device no longer meets its policy: see `doorward device show`",
            Self::Revoked => "the identity was revoked: ask an operator, then enrol again",
            Self::Expired => "the certificate has ended: renew it and connect again",
            Self::TooMany => "too many connections are open: share one, or wait",
            Self::Protocol => "client and broker speak different versions: update the older one",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_and_no_other_does() {
        for (code, number) in CloseCode::ALL.iter().zip(0x100_u32..) {
            assert_eq!(code.varint(), VarInt::from_u32(number));
            assert_eq!(CloseCode::parse(code.varint()), Some(*code));
        }
        assert_eq!(CloseCode::parse(VarInt::from_u32(0)), None);
        assert_eq!(CloseCode::parse(VarInt::from_u32(0x106)), None);
    }
}
