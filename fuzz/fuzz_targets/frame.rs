//! Frames: no bytes may panic a reader, and whatever is accepted is written back to the same value.
#![no_main]

use doorward::wire::{
    decode_lengths, decode_nonce, encode_nonce, parse_opening, parse_reply, read_body,
    read_evidence, read_opening, read_reply, write_opening,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = decode_lengths(bytes);
    if let Ok(reply) = parse_reply(bytes) {
        let text = serde_json::to_vec(&reply).expect("a reply has a json form");
        assert_eq!(parse_reply(&text).expect("it reads back"), reply);
    }
    if let Ok(opening) = parse_opening(bytes) {
        let text = serde_json::to_vec(&opening).expect("an opening has a json form");
        assert_eq!(parse_opening(&text).expect("it reads back"), opening);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(nonce) = decode_nonce(text)
    {
        assert_eq!(encode_nonce(&nonce), text, "one nonce has one text");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let _ = read_reply(&mut &*bytes).await;
        let _ = read_evidence(&mut &*bytes).await;
        let mut from = bytes;
        let Ok((opening, length)) = read_opening(&mut from).await else { return };
        let Ok(body) = read_body(&mut from, length).await else { return };
        assert_eq!(body.len(), length);
        let mut written = Vec::new();
        let wrote = write_opening(&mut written, &opening, body.expose()).await;
        // Escapes can make a head longer when it is written anew; that is the only way to fail.
        if wrote.is_ok() {
            let (again, _) = read_opening(&mut written.as_slice()).await.expect("it reads back");
            assert_eq!(again, opening);
        }
    });
});
