//! HTTP/2 made by hand, for what no library of ours would send; and one call by a library.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tonic::codegen::http;

/// A frame (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The preface with empty settings.
pub fn preface() -> Vec<u8> {
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, &[])].concat()
}

fn literal(lead: u8, name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![lead, u8::try_from(name.len()).unwrap()];
    field.extend_from_slice(name.as_bytes());
    match u8::try_from(value.len()).unwrap() {
        short @ ..127 => field.push(short),
        long => field.extend_from_slice(&[127, long - 127]),
    }
    field.extend_from_slice(value.as_bytes());
    field
}

/// The headers of a call as gRPC-core codes them: the authority by its name, to be remembered; or,
/// on a later stream, by its place in the table, where it is the newest.
pub fn block(authority: Option<&str>) -> Vec<u8> {
    let mut block = vec![0x83, 0x86]; // POST, http
    block.extend(literal(0x00, ":path", "/SpiffeWorkloadAPI/FetchX509SVID"));
    match authority {
        Some(authority) => block.extend(literal(0x40, ":authority", authority)),
        None => block.push(0x80 | 62),
    }
    block.extend(literal(0x00, "te", "trailers"));
    block.extend(literal(0x00, "content-type", "application/grpc"));
    block.extend(literal(0x00, "workload.spiffe.io", "true"));
    block
}

/// A whole call with an empty message.
pub fn ask(stream: u32, authority: Option<&str>) -> Vec<u8> {
    [frame(1, 4, stream, &block(authority)), frame(0, 1, stream, &[0; 5])].concat()
}

/// One connection.
pub struct Wire {
    stream: UnixStream,
    unread: Vec<u8>,
}

impl Wire {
    pub fn open(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, unread: Vec::new() }
    }

    /// Sends; the other end may have closed already.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return false,
                Ok(read) => {
                    self.unread.extend_from_slice(&chunk[..read]);
                    return true;
                }
                Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
                Err(why) if why.kind() == std::io::ErrorKind::ConnectionReset => return false,
                Err(why) => panic!("neither an answer nor an end: {why}"),
            }
        }
    }

    /// Kind, flags, stream and payload of the next frame; `None` at the end.
    fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let [a, b, c, kind, flags, s1, s2, s3, s4, rest @ ..] = self.unread.as_slice() {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if let Some(payload) = rest.get(..length) {
                    let stream = u32::from_be_bytes([*s1, *s2, *s3, *s4]);
                    let found = (*kind, *flags, stream, payload.to_vec());
                    self.unread.drain(..9 + length);
                    return Some(found);
                }
            }
            if !self.more() {
                return None;
            }
        }
    }

    /// The first data of a stream; `None` if the stream or the connection ends without any.
    pub fn data_of(&mut self, wanted: u32) -> Option<Vec<u8>> {
        loop {
            match self.next()? {
                (0, _, stream, payload) if stream == wanted && !payload.is_empty() => {
                    return Some(payload);
                }
                (0 | 1, flags, stream, _) if stream == wanted && flags & 1 == 1 => return None,
                (3, _, stream, _) if stream == wanted => return None,
                (7, ..) => return None,
                _ => {}
            }
        }
    }

    /// Whether the other end closes.
    pub fn ends(&mut self) -> bool {
        while self.more() {}
        true
    }
}

/// One call by an HTTP/2 library; the status of gRPC and its message.
pub async fn call(path: &Path, method: &str, headers: &[(&str, &str)]) -> (String, String) {
    let stream = tokio::net::UnixStream::connect(path).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(async move {
        let _ = connection.await;
    });
    let mut request = http::Request::post(format!("http://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    body.send_data(vec![0; 5].into(), true).unwrap();
    let answer = answer.await.unwrap();
    let text = |name: &str| {
        let value = answer.headers().get(name);
        value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let told = (text("grpc-status"), text("grpc-message").replace("%20", " "));
    driving.abort();
    told
}
