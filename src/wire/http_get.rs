//! One GET over HTTP/1.1 and its one answer, from a server that is not believed.
//!
//! Only what a bundle endpoint needs is understood: status, `Content-Length` or `chunked`, or an end.
//! What could be read in two ways is refused (two lengths, a length beside `chunked`, folded lines);
//! redirects are not followed. Nothing is allocated that the bounds do not allow.

use crate::model::limits::BUNDLE_HEAD_MAX;

/// Why an answer is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpGetError {
    /// It ended too early.
    #[error("the answer ended before it was whole")]
    CutOff,
    /// The lines before the body are too long.
    #[error("the lines before the body have more than {BUNDLE_HEAD_MAX} bytes")]
    HeadTooLong,
    /// The body is too long.
    #[error("the body has more than {0} bytes")]
    BodyTooLong(usize),
    /// It is not of HTTP/1.1, or could mean two things.
    #[error("the answer is not http/1.1 of one meaning: {0}")]
    Malformed(&'static str),
    /// It points elsewhere.
    #[error(
        "the endpoint redirects (status {0}); redirects are not followed: name the new address"
    )]
    Redirect(u16),
    /// It is not the document.
    #[error("the endpoint answers with status {0} instead of 200")]
    Status(u16),
}

/// How far the body is said to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Exactly(usize),
    Chunked,
    ToTheEnd,
}

/// An answer, as far as it has come. It holds no more than one body and what comes before it.
#[derive(Debug)]
pub struct HttpResponse {
    /// What has come and is not understood yet; the body itself where its length is known.
    bytes: Vec<u8>,
    /// Once the lines before the body are there.
    length: Option<Length>,
    /// Out of chunks.
    body: Vec<u8>,
    most: usize,
}

impl HttpResponse {
    /// Nothing has come; the body may have so many bytes.
    pub fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), length: None, body: Vec::new(), most }
    }

    /// Takes what has come; gives the body once it is whole. `ended` says that nothing follows.
    ///
    /// # Errors
    /// As soon as it is clear that there will be none.
    pub fn take(&mut self, bytes: &[u8], ended: bool) -> Result<Option<Vec<u8>>, HttpGetError> {
        self.bytes.extend_from_slice(bytes);
        let body = match self.head()? {
            None => None,
            Some(Length::Exactly(length)) if length > self.most => {
                return Err(HttpGetError::BodyTooLong(self.most));
            }
            Some(Length::Exactly(length)) => self.bytes.get(..length).map(<[u8]>::to_vec),
            Some(Length::Chunked) => self.unchunk()?,
            Some(Length::ToTheEnd) if self.bytes.len() > self.most => {
                return Err(HttpGetError::BodyTooLong(self.most));
            }
            Some(Length::ToTheEnd) => ended.then(|| std::mem::take(&mut self.bytes)),
        };
        match body {
            None if ended => Err(HttpGetError::CutOff),
            body => Ok(body),
        }
    }

    /// What the lines before the body say of it; `None` while they are not whole.
    fn head(&mut self) -> Result<Option<Length>, HttpGetError> {
        if self.length.is_some() {
            return Ok(self.length);
        }
        let head = self.bytes.windows(4).take(BUNDLE_HEAD_MAX).position(|end| end == b"\r\n\r\n");
        let Some(head) = head else {
            if self.bytes.len() > BUNDLE_HEAD_MAX {
                return Err(HttpGetError::HeadTooLong);
            }
            // Rubbish is told apart from what is slow.
            let begin = self.bytes.iter().zip(b"HTTP/1.");
            return match begin.into_iter().all(|(came, want)| came == want) {
                true => Ok(None),
                false => Err(HttpGetError::Malformed("no status line")),
            };
        };
        let length = read_head(self.bytes.get(..head).unwrap_or_default())?;
        self.bytes.drain(..head.saturating_add(4));
        self.length = Some(length);
        Ok(self.length)
    }

    /// Takes whole chunks out of what has come; the body after the last one. Trailers are passed over.
    fn unchunk(&mut self) -> Result<Option<Vec<u8>>, HttpGetError> {
        let mut bytes = self.bytes.as_slice();
        let whole = loop {
            match next_chunk(bytes, self.most.saturating_sub(self.body.len()))? {
                Chunk::Waiting => break false,
                Chunk::Last => break true,
                Chunk::TooLong => return Err(HttpGetError::BodyTooLong(self.most)),
                Chunk::Whole(chunk, rest) => {
                    self.body.extend_from_slice(chunk);
                    bytes = rest;
                }
            }
        };
        let left = bytes.len();
        self.bytes.drain(..self.bytes.len().saturating_sub(left));
        Ok(whole.then(|| std::mem::take(&mut self.body)))
    }
}

fn read_head(head: &[u8]) -> Result<Length, HttpGetError> {
    let malformed = HttpGetError::Malformed;
    let head = std::str::from_utf8(head).map_err(|_| malformed("the head is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let rest = status.strip_prefix("HTTP/1.1 ").or_else(|| status.strip_prefix("HTTP/1.0 "));
    let digits = rest.and_then(|rest| rest.get(..3)).ok_or(malformed("no status line"))?;
    let status = digits.parse::<u16>().map_err(|_| malformed("no status"))?;
    match status {
        200 => {}
        300..=399 => return Err(HttpGetError::Redirect(status)),
        _ => return Err(HttpGetError::Status(status)),
    }
    let (mut length, mut chunked) = (None, false);
    for line in lines {
        if line.contains(['\r', '\n', '\0']) || line.starts_with([' ', '\t']) {
            return Err(malformed("a line that is folded or broken"));
        }
        let (name, value) = line.split_once(':').ok_or(malformed("a line without a name"))?;
        let value = value.trim_matches([' ', '\t']);
        if name.is_empty() || name.contains([' ', '\t']) {
            return Err(malformed("a line without a name"));
        }
        if name.eq_ignore_ascii_case("content-length") {
            if length.is_some() || value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
                return Err(malformed("a length that is none, or two of them"));
            }
            length = Some(value.parse().unwrap_or(usize::MAX));
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case("chunked") {
                return Err(malformed("another encoding than `chunked`"));
            }
            chunked = true;
        } else if name.eq_ignore_ascii_case("content-encoding")
            && !value.eq_ignore_ascii_case("identity")
        {
            return Err(malformed("a compressed body, which nobody asked for"));
        }
    }
    match (length, chunked) {
        (Some(_), true) => Err(malformed("a length beside `chunked`")),
        (Some(length), false) => Ok(Length::Exactly(length)),
        (None, true) => Ok(Length::Chunked),
        (None, false) => Ok(Length::ToTheEnd),
    }
}

/// What stands at the beginning of a chunked body.
enum Chunk<'b> {
    Waiting,
    Last,
    TooLong,
    /// The chunk, and what follows.
    Whole(&'b [u8], &'b [u8]),
}

fn next_chunk(bytes: &[u8], most: usize) -> Result<Chunk<'_>, HttpGetError> {
    /// The line before a chunk: a length, and extensions that nobody uses.
    const LINE_MAX: usize = 256;
    let malformed = HttpGetError::Malformed("a chunk without a length");
    let Some(end) = bytes.windows(2).take(LINE_MAX).position(|end| end == b"\r\n") else {
        return if bytes.len() > LINE_MAX { Err(malformed) } else { Ok(Chunk::Waiting) };
    };
    let line = bytes.get(..end).and_then(|line| std::str::from_utf8(line).ok());
    let line = line.ok_or(malformed.clone())?;
    let digits = line.split(';').next().unwrap_or_default().trim_end_matches([' ', '\t']);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(malformed);
    }
    let length = usize::from_str_radix(digits, 16).map_err(|_| malformed)?;
    if length == 0 {
        return Ok(Chunk::Last);
    }
    if length > most {
        return Ok(Chunk::TooLong);
    }
    let rest = bytes.get(end.saturating_add(2)..).unwrap_or_default();
    match rest.split_at_checked(length) {
        Some((chunk, [b'\r', b'\n', rest @ ..])) => Ok(Chunk::Whole(chunk, rest)),
        None | Some((_, [] | [b'\r'])) => Ok(Chunk::Waiting),
        Some(_) => Err(HttpGetError::Malformed("a chunk that goes on behind its end")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MOST: usize = 64;

    fn whole(text: &str) -> Result<Option<Vec<u8>>, HttpGetError> {
        HttpResponse::new(MOST).take(text.as_bytes(), true)
    }

    #[test]
    fn each_form_of_a_body_is_read_and_no_byte_behind_it() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\ncontent-length:2\r\nX: y\r\n\r\n{}",
            "HTTP/1.1 200\r\ncontent-length: 2\r\n\r\n{}and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\n{}",
        ] {
            assert_eq!(whole(text).unwrap().unwrap(), b"{}", "{text}");
            // Every beginning of it is waited on, or refused as cut off at the end.
            let end = text.find("and more").unwrap_or(text.len());
            let mut drip = HttpResponse::new(MOST);
            let dripped = text.bytes().find_map(|byte| drip.take(&[byte], false).unwrap());
            let dripped = dripped.or_else(|| drip.take(&[], true).unwrap());
            assert_eq!(dripped.unwrap(), b"{}", "byte by byte: {text}");
            for cut in 0..end {
                let part = &text.as_bytes()[..cut];
                let so_far = HttpResponse::new(MOST).take(part, false).unwrap();
                if text.contains("chunked") && so_far.is_some() {
                    assert!(text[..cut].contains("0\r\n"), "{cut}");
                } else {
                    assert_eq!(so_far, None, "{text} at {cut}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_the_document_is_refused_with_its_reason() {
        use HttpGetError as E;
        let head = "HTTP/1.1 200 OK\r\n";
        for (text, want) in [
            ("HTTP/1.1 301 Moved\r\nLocation: http://c\r\n\r\n".to_owned(), E::Redirect(301)),
            ("HTTP/1.1 307 T\r\nLocation: /x\r\n\r\n".to_owned(), E::Redirect(307)),
            ("HTTP/1.1 404 No\r\n\r\n".to_owned(), E::Status(404)),
            ("HTTP/1.1 100 Continue\r\n\r\n".to_owned(), E::Status(100)),
            ("SSH-2.0-x\r\n".to_owned(), E::Malformed("no status line")),
            ("HTTP/2.0 200 OK\r\n\r\n".to_owned(), E::Malformed("no status line")),
            (String::new(), E::CutOff),
            (format!("{head}content-length: 3\r\n\r\n{{}}"), E::CutOff),
            (format!("{head}content-length: 65\r\n\r\n"), E::BodyTooLong(MOST)),
            (
                format!("{head}content-length: 99999999999999999999999\r\n\r\n"),
                E::BodyTooLong(MOST),
            ),
            (format!("{head}\r\n{}", "x".repeat(65)), E::BodyTooLong(MOST)),
            (format!("{head}transfer-encoding: chunked\r\n\r\n41\r\n"), E::BodyTooLong(MOST)),
            (format!("{head}transfer-encoding: chunked\r\n\r\n1\r\n{{"), E::CutOff),
            (format!("{head}x: {}", "y".repeat(BUNDLE_HEAD_MAX)), E::HeadTooLong),
        ] {
            assert_eq!(whole(&text), Err(want), "{text:.60}");
        }
        for lines in [
            "content-length: 2\r\ncontent-length: 2",
            "content-length: +2",
            "content-length: 2, 2",
            "content-length:",
            "content-length: 2\r\ntransfer-encoding: chunked",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "content-encoding: gzip\r\ncontent-length: 2",
            "content-length : 2",
            "content-length: 2\r\n folded: x",
            "nothing",
            ": x",
        ] {
            let told = whole(&format!("{head}{lines}\r\n\r\n{{}}"));
            assert!(matches!(told, Err(E::Malformed(_))), "{lines}: {told:?}");
        }
        for chunks in
            ["", "\r\n", "+1\r\nx\r\n", "1\r\nxy\r\n", "fffffffff\r\n", "-\r\n", "0x1\r\n"]
        {
            let told = whole(&format!("{head}transfer-encoding: chunked\r\n\r\n{chunks}"));
            assert!(matches!(told, Err(E::Malformed(_) | E::CutOff)), "{chunks}: {told:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            head in "(HTTP/1\\.1 200 OK\r\n)?(transfer-encoding: chunked\r\n)?(\r\n)?",
            rest in proptest::collection::vec(any::<u8>(), 0..200),
            step in 1_usize..50,
        ) {
            let bytes = [head.as_bytes(), &rest].concat();
            let at_once = HttpResponse::new(MOST).take(&bytes, true);
            let mut drip = HttpResponse::new(MOST);
            let mut came = Ok(None);
            for chunk in bytes.chunks(step) {
                came = drip.take(chunk, false);
                if came != Ok(None) {
                    break;
                }
            }
            if came == Ok(None) {
                came = drip.take(&[], true);
            }
            prop_assert_eq!(&came, &at_once);
            if let Ok(Some(body)) = came {
                prop_assert!(body.len() <= MOST);
            }
        }
    }
}
