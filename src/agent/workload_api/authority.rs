//! Mends the `:authority` of clients on gRPC-core.
//!
//! On a Unix socket these send the socket's path, with `%2F` for each slash, as `:authority`. That
//! is no authority (RFC 9110 §4.2), the HTTP/2 library resets the stream, and such a client could
//! never be served. So every octet of a value that is no authority is overwritten with `x` before
//! the library sees it. Nothing is cut out: the length of no frame changes, and neither does that
//! of an entry in the tables of header compression, which both ends must keep alike (RFC 7541 §4.1).
//!
//! Nothing else is changed, and nothing is decided here. In any doubt all bytes pass untouched from
//! then on, for the library to judge. A value that is Huffman-coded, or whose name comes from the
//! dynamic table, is left as it is: no client is known that sends one.

use std::ops::Range;

use tonic::codegen::http::uri::Authority;

/// What every HTTP/2 connection begins with (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The head of a frame.
const HEAD: usize = 9;
/// The largest frame that is let in before the other end was told of a larger one.
const FRAME_MAX: usize = 16 * 1024;
/// Frames of one header block; honest ones have one.
const FRAMES_MAX: usize = 8;
/// Bytes of one header block with the heads of its frames.
const BLOCK_MAX: usize = 32 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Where in the byte stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many octets of the preface have come.
    Preface(usize),
    /// At or in the head of a frame, with `held` empty or in it.
    Head,
    /// So many octets of a frame that does not concern us are still to come.
    Passing(usize),
    /// In a frame of a header block, of which so many octets are still to come.
    Block(usize),
    /// Something was not as it should be: all passes.
    Blind,
}

/// The mender of one connection.
#[derive(Debug)]
pub(super) struct Mender {
    state: State,
    /// Octets that can't pass yet: a head that is not whole, or a header block up to here.
    held: Vec<u8>,
    /// Where in `held` the head of the present frame begins, while a block is held.
    frame_at: usize,
    frames: usize,
    ended: u64,
}

impl Mender {
    pub(super) fn new() -> Self {
        Self { state: State::Preface(0), held: Vec::new(), frame_at: 0, frames: 0, ended: 0 }
    }

    /// Whether a frame, or the preface, has begun and not ended.
    pub(super) fn is_amid(&self) -> bool {
        match self.state {
            State::Preface(_) | State::Passing(_) | State::Block(_) => true,
            State::Head => !self.held.is_empty(),
            State::Blind => false,
        }
    }

    /// How many frames, whole header blocks and prefaces have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    fn end(&mut self) {
        self.state = State::Head;
        self.ended = self.ended.wrapping_add(1);
    }

    /// Takes octets as they came, and adds to `out` those that may pass.
    pub(super) fn push(&mut self, mut octets: &[u8], out: &mut Vec<u8>) {
        while !octets.is_empty() {
            let taken = match self.state {
                State::Preface(seen) => self.preface(seen, octets, out),
                State::Head => self.head(octets, out),
                State::Passing(left) => {
                    let taken = left.min(octets.len());
                    out.extend_from_slice(octets.get(..taken).unwrap_or_default());
                    match left.saturating_sub(taken) {
                        0 => self.end(),
                        left => self.state = State::Passing(left),
                    }
                    taken
                }
                State::Block(left) => self.block(left, octets, out),
                State::Blind => {
                    out.extend_from_slice(octets);
                    octets.len()
                }
            };
            octets = octets.get(taken..).unwrap_or_default();
        }
    }

    fn blind(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.held = Vec::new();
        self.state = State::Blind;
    }

    fn preface(&mut self, seen: usize, octets: &[u8], out: &mut Vec<u8>) -> usize {
        let wanted = PREFACE.get(seen..).unwrap_or_default();
        let taken = wanted.len().min(octets.len());
        let came = octets.get(..taken).unwrap_or_default();
        out.extend_from_slice(came);
        let seen = seen.saturating_add(taken);
        match (wanted.starts_with(came), seen == PREFACE.len()) {
            (false, _) => self.state = State::Blind,
            (true, true) => self.end(),
            (true, false) => self.state = State::Preface(seen),
        }
        taken
    }

    fn head(&mut self, octets: &[u8], out: &mut Vec<u8>) -> usize {
        let in_block = self.frames > 0;
        let have = self.held.len().saturating_sub(if in_block { self.frame_at } else { 0 });
        let taken = HEAD.saturating_sub(have).min(octets.len());
        self.held.extend_from_slice(octets.get(..taken).unwrap_or_default());
        let at = if in_block { self.frame_at } else { 0 };
        let Some(head) = self.held.get(at..).and_then(|head| head.first_chunk::<HEAD>()) else {
            return taken; // not whole yet
        };
        let [a, b, c, kind, ..] = *head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
        let whole = self.held.len().saturating_add(length);
        let fits = length <= FRAME_MAX && whole <= BLOCK_MAX && self.frames < FRAMES_MAX;
        match (in_block, kind) {
            (false, HEADERS) | (true, CONTINUATION) if fits => {
                self.frames = self.frames.saturating_add(1);
                self.frame_at = at;
                self.state = State::Block(length);
                if length == 0 {
                    self.frame_ended(out);
                }
            }
            (false, kind) if kind != HEADERS && kind != CONTINUATION && length <= FRAME_MAX => {
                out.append(&mut self.held);
                match length {
                    0 => self.end(),
                    left => self.state = State::Passing(left),
                }
            }
            _ => self.blind(out),
        }
        taken
    }

    fn block(&mut self, left: usize, octets: &[u8], out: &mut Vec<u8>) -> usize {
        let taken = left.min(octets.len());
        self.held.extend_from_slice(octets.get(..taken).unwrap_or_default());
        let left = left.saturating_sub(taken);
        self.state = State::Block(left);
        if left == 0 {
            self.frame_ended(out);
        }
        taken
    }

    /// A whole frame of a block is held: the last one, or one of several.
    fn frame_ended(&mut self, out: &mut Vec<u8>) {
        let flags = self.held.get(self.frame_at.saturating_add(4)).copied().unwrap_or(END_HEADERS);
        if flags & END_HEADERS == 0 {
            self.state = State::Head;
            self.frame_at = self.held.len();
            return;
        }
        self.end();
        mend(&mut self.held);
        out.append(&mut self.held);
        (self.frames, self.frame_at) = (0, 0);
        self.held.shrink_to(FRAME_MAX);
    }
}

/// Overwrites what is no authority in the frames of one whole block.
fn mend(frames: &mut [u8]) {
    let Some(places) = fragment_places(frames) else { return };
    let block: Vec<u8> = places.iter().filter_map(|at| frames.get(*at).copied()).collect();
    for odd in odd_authorities(&block) {
        for at in places.get(odd).unwrap_or_default() {
            if let Some(octet) = frames.get_mut(*at) {
                *octet = b'x';
            }
        }
    }
}

/// Where the octets of the block itself stand: without heads, padding and priorities.
fn fragment_places(frames: &[u8]) -> Option<Vec<usize>> {
    let mut places = Vec::with_capacity(frames.len());
    let mut at = 0_usize;
    while at < frames.len() {
        let [a, b, c, kind, flags, ..] = *frames.get(at..)?.first_chunk::<HEAD>()?;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).ok()?;
        let begin = at.checked_add(HEAD)?;
        let end = begin.checked_add(length)?;
        let (mut first, mut last) = (begin, end);
        if kind == HEADERS {
            if flags & PADDED != 0 {
                last = last.checked_sub(usize::from(*frames.get(first)?))?;
                first = first.checked_add(1)?;
            }
            if flags & PRIORITY != 0 {
                first = first.checked_add(5)?;
            }
        }
        if first > last {
            return None;
        }
        places.extend(first..last);
        at = end;
    }
    Some(places)
}

/// The values of `:authority` in a header block (RFC 7541 §6) that are none. A block that can't be
/// read to its end has none: the library will refuse it.
fn odd_authorities(block: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < block.len() {
        let Some(next) = field(block, at, &mut found) else { return Vec::new() };
        at = next;
    }
    found
}

/// Reads one field; gives where the next one begins.
fn field(block: &[u8], at: usize, found: &mut Vec<Range<usize>>) -> Option<usize> {
    let first = *block.get(at)?;
    let bits = match first {
        0x80.. => 7,      // indexed
        0x40..=0x7f => 6, // literal, to be remembered
        0x20..=0x3f => 5, // a new size of the table
        _ => 4,           // literal, not to be remembered
    };
    let (index, at) = integer(block, at, bits)?;
    if matches!(bits, 7 | 5) {
        return Some(at);
    }
    let (named, at) = match index {
        0 => {
            let (coded, name) = string(block, at)?;
            (!coded && block.get(name.clone())? == b":authority", name.end)
        }
        index => (index == 1, at), // the first of the static table (RFC 7541, Appendix A)
    };
    let (coded, value) = string(block, at)?;
    let end = value.end;
    if named && !coded && Authority::try_from(block.get(value.clone())?).is_err() {
        found.push(value);
    }
    Some(end)
}

/// An integer with a prefix of so many bits (RFC 7541 §5.1), and where it ends.
fn integer(block: &[u8], at: usize, bits: u32) -> Option<(usize, usize)> {
    let full = 0xff_u8.checked_shr(8_u32.checked_sub(bits)?)?;
    let first = block.get(at)? & full;
    let mut at = at.checked_add(1)?;
    let mut value = usize::from(first);
    if first < full {
        return Some((value, at));
    }
    for shift in [0_u32, 7, 14, 21] {
        let octet = *block.get(at)?;
        at = at.checked_add(1)?;
        value = value.checked_add(usize::from(octet & 0x7f).checked_shl(shift)?)?;
        if octet & 0x80 == 0 {
            return Some((value, at));
        }
    }
    None // longer than anything that fits a block
}

/// A string (RFC 7541 §5.2): whether it is Huffman-coded, and its octets.
fn string(block: &[u8], at: usize) -> Option<(bool, Range<usize>)> {
    let coded = block.get(at)? & 0x80 != 0;
    let (length, begin) = integer(block, at, 7)?;
    let end = begin.checked_add(length)?;
    (end <= block.len()).then_some((coded, begin..end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PATH: &[u8] = b"run%2Fdoorward%2Fagent.sock";
    /// A length that fits the seven bits of a prefix.
    const N: u8 = 27;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend_from_slice(&[kind, flags, 0, 0, 0, 1]);
        frame.extend_from_slice(payload);
        frame
    }

    /// As gRPC-core sends it: method and scheme by index, then the literal name, to be remembered.
    fn block(value: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x40, 10];
        block.extend_from_slice(b":authority");
        block.push(u8::try_from(value.len()).unwrap());
        block.extend_from_slice(value);
        block.push(0x82);
        block
    }

    fn passed(bytes: &[u8]) -> Vec<u8> {
        let (mut mender, mut out) = (Mender::new(), Vec::new());
        mender.push(bytes, &mut out);
        out
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = PREFACE.to_vec();
        bytes.push(0); // an empty SETTINGS frame
        bytes.extend_from_slice(&[0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend(frames.concat());
        bytes
    }

    #[test]
    fn a_path_becomes_a_word_of_the_same_length_and_nothing_else_changes() {
        let sent = connection(&[frame(HEADERS, END_HEADERS, &block(PATH)), frame(0, 1, b"data")]);
        let want =
            connection(&[frame(HEADERS, END_HEADERS, &block(&[b'x'; 27])), frame(0, 1, b"data")]);
        assert_eq!(passed(&sent), want);
        let honest = connection(&[frame(HEADERS, END_HEADERS, &block(b"localhost:80"))]);
        assert_eq!(passed(&honest), honest);
    }

    #[test]
    fn names_by_index_padding_priority_and_continuations_are_followed() {
        for lead in [0x41, 0x01, 0x11] {
            let field = |value: &[u8]| [&[lead, N][..], value].concat();
            let sent = connection(&[frame(HEADERS, END_HEADERS, &field(PATH))]);
            let want = connection(&[frame(HEADERS, END_HEADERS, &field(&[b'x'; 27]))]);
            assert_eq!(passed(&sent), want, "{lead:#x}");
        }
        let padded = |value: &[u8]| {
            let payload = [&[3, 0, 0, 0, 0, 9][..], &block(value), &[0; 3]].concat();
            connection(&[frame(HEADERS, END_HEADERS | PADDED | PRIORITY, &payload)])
        };
        assert_eq!(passed(&padded(PATH)), padded(&[b'x'; 27]));
        let split = |value: &[u8]| {
            let block = block(value);
            let (one, rest) = block.split_at(20);
            let (two, three) = rest.split_at(7);
            connection(&[
                frame(HEADERS, 0, one),
                frame(CONTINUATION, 0, two),
                frame(CONTINUATION, END_HEADERS, three),
                frame(HEADERS, END_HEADERS, &block),
            ])
        };
        assert_eq!(passed(&split(PATH)), split(&[b'x'; 27]));
    }

    #[test]
    fn what_can_t_be_read_passes_untouched() {
        let huffman = [&[0x41, 0x80 | N][..], PATH].concat();
        let cut = [&[0x41, N.saturating_add(1)][..], PATH].concat();
        let endless = [&[0x41, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f][..], PATH].concat();
        for odd in [huffman, cut, endless] {
            let sent = connection(&[frame(HEADERS, END_HEADERS, &odd)]);
            assert_eq!(passed(&sent), sent);
        }
        let overpadded = frame(HEADERS, END_HEADERS | PADDED, &[200, 1, 2]);
        let stray = frame(CONTINUATION, END_HEADERS, &block(PATH));
        let amid = [frame(HEADERS, 0, &block(PATH)), frame(0, 0, b"data")].concat();
        let huge = frame(HEADERS, END_HEADERS, &[0x82; FRAME_MAX + 1]);
        let many =
            [frame(HEADERS, 0, &[]), frame(CONTINUATION, 0, &[]).repeat(FRAMES_MAX)].concat();
        for odd in [overpadded, stray, amid, huge, many] {
            let sent = connection(&[odd]);
            assert_eq!(passed(&sent), sent);
        }
        let not_http2 = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        assert_eq!(passed(not_http2), not_http2);
    }

    #[test]
    fn an_unended_frame_is_known_as_such() {
        let whole = connection(&[frame(HEADERS, END_HEADERS, &block(PATH))]);
        let (mut mender, mut out) = (Mender::new(), Vec::new());
        assert!(mender.is_amid(), "the preface is owed");
        for (at, byte) in whole.iter().enumerate() {
            mender.push(&[*byte], &mut out);
            let settled = at + 1 == PREFACE.len() || at + 1 == PREFACE.len() + HEAD;
            assert_eq!(mender.is_amid(), !settled && at + 1 != whole.len(), "{at}");
        }
        assert_eq!(out.len(), whole.len());
    }

    proptest! {
        #[test]
        fn how_the_octets_are_cut_makes_no_difference(
            cuts in proptest::collection::vec(1usize..40, 1..60),
            tail in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let head = frame(HEADERS, END_HEADERS, &block(PATH));
            let bytes = [connection(&[head]), tail].concat();
            let (mut mender, mut out, mut rest) = (Mender::new(), Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                mender.push(now, &mut out);
                rest = later;
                if rest.is_empty() { break }
            }
            prop_assert_eq!(out, passed(&bytes));
        }

        #[test]
        fn octets_are_only_held_back_never_lost_or_added(
            tail in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let bytes = connection(&[tail]);
            let (mut mender, mut out) = (Mender::new(), Vec::new());
            mender.push(&bytes, &mut out);
            prop_assert_eq!(out.len() + mender.held.len(), bytes.len());
        }

        #[test]
        fn any_block_is_read_or_left(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            for odd in odd_authorities(&block) {
                prop_assert!(odd.end <= block.len());
            }
        }
    }
}
